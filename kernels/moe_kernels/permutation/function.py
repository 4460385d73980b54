"""permute and unpermute: the rows of routed tokens into expert order, and back.

T tokens, R routed tokens, D hidden size, E experts, S sources (ranks that sent rows).
"""

import torch
from torch import Tensor

from moe_kernels.implementation import resolve_impl
from moe_kernels.permutation.reference import gather_rows, scatter_rows
from moe_kernels.routing.types import Routing


def permute(x_TD: Tensor, routing: Routing, *, impl: str = "auto") -> Tensor:
    """Return x_RD: the routed tokens' rows sorted by expert, in token order within an expert.

    With experts spread over ranks in blocks, this is the send buffer: sorted by rank, then expert.
    """
    resolve_impl(impl, x_TD.device)
    return _Permute.apply(x_TD, routing.order_R)


def unpermute(
    y_RD: Tensor, routing: Routing, scale_T: Tensor | None = None, *, impl: str = "auto"
) -> Tensor:
    """Return y_TD: the rows of y_RD back in token order, times scale_T; 0 where not routed."""
    resolve_impl(impl, y_RD.device)
    scale_R = None if scale_T is None else scale_T[routing.order_R].to(y_RD.dtype)
    return _Unpermute.apply(y_RD, routing.order_R, routing.expert_T.shape[0], scale_R)


def received_order(counts_SE: Tensor) -> tuple[Tensor, Tensor]:
    """Return (order_R int64, counts_E int32) that sort received rows by expert.

    Rows arrive source by source, each source's rows sorted by expert: counts_SE. order_R lists the
    rows of expert 0 from every source, then expert 1's; hand both to expert_ffn.
    """
    num_sources, num_experts = counts_SE.shape
    expert_of_block = torch.arange(num_experts, device=counts_SE.device).repeat(num_sources)
    expert_R = expert_of_block.repeat_interleave(counts_SE.reshape(-1))
    return torch.sort(expert_R, stable=True).indices, counts_SE.sum(0, dtype=torch.int32)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, order_R: Tensor) -> Tensor:
        ctx.save_for_backward(order_R)
        ctx.num_rows = x_TD.shape[0]
        return gather_rows(x_TD, order_R)

    @staticmethod
    def backward(ctx, grad_RD: Tensor):
        (order_R,) = ctx.saved_tensors
        return scatter_rows(grad_RD, order_R, ctx.num_rows), None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_RD: Tensor, order_R: Tensor, num_rows: int, scale_R: Tensor | None):
        ctx.save_for_backward(order_R, *(() if scale_R is None else (scale_R, y_RD)))
        if scale_R is not None:
            y_RD = y_RD * scale_R.unsqueeze(1)
        return scatter_rows(y_RD, order_R, num_rows)

    @staticmethod
    def backward(ctx, grad_TD: Tensor):
        order_R, *scaled = ctx.saved_tensors
        grad_RD = gather_rows(grad_TD, order_R)
        if not scaled:
            return grad_RD, None, None, None
        scale_R, y_RD = scaled
        grad_scale_R = (grad_RD * y_RD).sum(
            1, dtype=torch.promote_types(grad_RD.dtype, torch.float32)
        )
        return grad_RD.mul_(scale_R.unsqueeze(1)), None, None, grad_scale_R.to(scale_R.dtype)
