"""permute and unpermute: the rows of routed tokens into expert order, and back.

T tokens, R routed tokens, D hidden size, E experts, S sources (ranks that sent rows).
"""

import torch
from torch import Tensor

from moe_kernels.first_order import first_order
from moe_kernels.implementation import check_kernel_dtype, resolve_impl
from moe_kernels.opaque import opaque
from moe_kernels.permutation.reference import gather_rows, scatter_rows
from moe_kernels.routing.types import Routing


@opaque
def permute(
    x_TD: Tensor, routing: Routing, *, num_rows: int | None = None, impl: str = "auto"
) -> Tensor:
    """Return x_RD: the routed tokens' rows sorted by expert, in token order within an expert.

    With experts spread over ranks in blocks, this is the send buffer: sorted by rank, then expert.
    num_rows: the number of routed tokens, R, where the host knows it (it does once the counts have
    been exchanged); without it a GPU's result has T rows, those of tokens not routed at the end.
    """
    num_rows = routing.order_R.shape[0] if num_rows is None else num_rows
    name = _checked("x_TD", x_TD, impl)
    return _Permute.apply(x_TD.contiguous(), routing.order_R, num_rows, name)


@opaque
def unpermute(
    y_RD: Tensor, routing: Routing, scale_T: Tensor | None = None, *, impl: str = "auto"
) -> Tensor:
    """Return y_TD: the rows of y_RD back in token order, times scale_T; 0 where not routed.

    scale_T: float32, one a token; its gradient is the product of y's row and y_TD's gradient.
    """
    name = _checked("y_RD", y_RD, impl)
    num_tokens = routing.expert_T.shape[0]
    return _Unpermute.apply(y_RD.contiguous(), routing.order_R, num_tokens, scale_T, name)


def received_order(counts_SE: Tensor, num_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Return (order_R int64, counts_E int32) that sort received rows by expert.

    Rows arrive source by source, each source's rows sorted by expert: counts_SE. order_R lists the
    rows of expert 0 from every source, then expert 1's; hand both to expert_ffn, which then needs
    no copy of the rows on the way in or out. num_rows, their sum where the host knows it, saves
    waiting for a GPU.
    """
    num_sources, num_experts = counts_SE.shape
    expert_of_block = torch.arange(num_experts, device=counts_SE.device).repeat(num_sources)
    expert_R = expert_of_block.repeat_interleave(counts_SE.reshape(-1), output_size=num_rows)
    return torch.sort(expert_R, stable=True).indices, counts_SE.sum(0, dtype=torch.int32)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, order: Tensor, num_rows: int, name: str) -> Tensor:
        ctx.save_for_backward(order)
        ctx.num_tokens, ctx.name = x_TD.shape[0], name
        return _gather(name, x_TD, order, num_rows)[0]

    @staticmethod
    @first_order
    def backward(ctx, grad_RD: Tensor):
        (order,) = ctx.saved_tensors
        grad_TD = _scatter(ctx.name, grad_RD.contiguous(), order, ctx.num_tokens)
        return grad_TD, None, None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_RD: Tensor, order: Tensor, num_tokens: int, scale_T, name: str):
        wants_scale = scale_T is not None and ctx.needs_input_grad[3]
        ctx.save_for_backward(order, scale_T, y_RD if wants_scale else None)
        ctx.num_rows, ctx.name = y_RD.shape[0], name
        return _scatter(name, y_RD, order, num_tokens, scale_T)

    @staticmethod
    @first_order
    def backward(ctx, grad_TD: Tensor):
        order, scale_T, y_RD = ctx.saved_tensors
        grad_RD, dots_T = _gather(
            ctx.name, grad_TD.contiguous(), order, ctx.num_rows, scale_T, y_RD
        )
        grad_scale_T = None if dots_T is None else dots_T.to(scale_T.dtype)
        return grad_RD, None, None, grad_scale_T, None


def _gather(name: str, x_TD, order, num_rows: int, scale_T=None, other_RD=None):
    if name == "torch":
        return gather_rows(x_TD, order, num_rows, scale_T, other_RD)
    return _launches(name).launch_gather(x_TD, order, num_rows, scale_T, other_RD)


def _scatter(name: str, y_RD, order, num_tokens: int, scale_T=None) -> Tensor:
    if name == "torch":
        return scatter_rows(y_RD, order, num_tokens, scale_T)
    return _launches(name).launch_scatter(y_RD, order, scale_T)


def _launches(name: str):
    if name == "cuda":
        from moe_kernels.cuda import extension

        return extension
    from moe_kernels.permutation import launch

    return launch


def _checked(name: str, rows: Tensor, impl: str) -> str:
    impl = resolve_impl(impl, rows.device)
    if impl != "torch":
        check_kernel_dtype(name, rows)
    return impl
