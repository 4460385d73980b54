"""attend: attention over packed sequences, forward and backward.

T tokens, H heads, d head size, B sequences. Sequences of up to 128 tokens take our kernels, longer
ones torch's flash.
"""

import torch
from torch import Tensor

from encoder_kernels.attention.flash import flash_backward, flash_forward
from encoder_kernels.attention.plan import SequencePlan
from encoder_kernels.attention.reference import attend_reference
from encoder_kernels.dropout import check_probability, draw_seed
from moe_kernels.first_order import first_order
from moe_kernels.implementation import check_kernel_dtype, resolve_impl

LARGEST_HEAD = 128


def attend(
    q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, plan: SequencePlan, scale: float,
    dropout: float = 0.0, *, seed: Tensor | None = None, impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Return softmax(scale q k^T) v within each sequence, [T, H, d], the softmax in float32.

    Tokens after the last sequence get 0. dropout: of the weights. seed: int64 of one element on the
    device that says what is dropped in sequences of up to 128 tokens; None: drawn there by
    torch's generator. Raises ValueError for shapes, types or a head that it cannot take, and for
    longer sequences outside 16 bits on a GPU.
    """
    name = resolve_impl(impl, q_THd.device)
    if name == "cuda":
        raise ValueError(f'impl="{impl}" has no attention; allowed: "torch", "triton"')
    check_probability(dropout)
    if not q_THd.shape == k_THd.shape == v_THd.shape or q_THd.dim() != 3:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_THd, k_THd, v_THd))
        raise ValueError(f"query, key and value are {shapes}: must be one shape [T, H, d]")
    if plan.tokens > q_THd.shape[0]:
        raise ValueError(f"the plan has {plan.tokens} tokens, the query {q_THd.shape[0]}")
    if dropout > 0 and seed is None:
        seed = draw_seed(q_THd.device)
    if name == "torch":
        return attend_reference(q_THd, k_THd, v_THd, plan.ends, scale, dropout, seed)
    check_kernel_dtype("q_THd", q_THd)
    if q_THd.shape[2] > LARGEST_HEAD:
        raise ValueError(f"heads of size {q_THd.shape[2]}; the kernels take up to {LARGEST_HEAD}")
    if plan.long_sequences and (q_THd.device.type != "cuda" or q_THd.dtype == torch.float32):
        raise ValueError(
            f"a sequence of {plan.longest} tokens, {q_THd.dtype} on {q_THd.device.type}: beyond "
            f"128 tokens torch's flash attends, in 16 bits on a GPU"
        )
    inputs = _with_one_stride(q_THd, k_THd, v_THd)
    return Attention.apply(*inputs, seed if dropout > 0 else None, plan, float(scale), dropout)


class Attention(torch.autograd.Function):
    """attend on the Triton kernels. The three gradients are views of one tensor [T, 3, H, d]."""

    @staticmethod
    def forward(ctx, q_THd, k_THd, v_THd, seed, plan: SequencePlan, scale, dropout):
        from encoder_kernels.attention.launch import launch_attend

        out_THd = torch.empty(q_THd.shape, dtype=q_THd.dtype, device=q_THd.device)
        saved = ()
        if plan.long_sequences:
            long = (x[: plan.long_tokens] for x in (q_THd, k_THd, v_THd))
            out, saved = flash_forward(*long, _long_ends(plan), plan.longest, dropout, scale)
            out_THd[: plan.long_tokens] = out
        launch_attend(q_THd, k_THd, v_THd, out_THd, plan, scale, dropout, seed)
        if plan.tokens < out_THd.shape[0]:
            out_THd[plan.tokens :] = 0
        ctx.save_for_backward(q_THd, k_THd, v_THd, seed, *saved)
        ctx.plan, ctx.scale, ctx.dropout = plan, scale, dropout
        return out_THd

    @staticmethod
    @first_order
    def backward(ctx, grad_THd):
        from encoder_kernels.attention.launch import launch_attend_grad

        q_THd, k_THd, v_THd, seed, *saved = ctx.saved_tensors
        plan, grad_THd = ctx.plan, grad_THd.contiguous()
        tokens, heads, size = grad_THd.shape
        grads_T3Hd = grad_THd.new_empty(tokens, 3, heads, size)
        if plan.long_sequences:
            long = (x[: plan.long_tokens] for x in (grad_THd, q_THd, k_THd, v_THd))
            grads = flash_backward(
                *long, tuple(saved), _long_ends(plan), plan.longest, ctx.dropout, ctx.scale
            )
            torch.stack(grads, dim=1, out=grads_T3Hd[: plan.long_tokens])
        launch_attend_grad(
            q_THd, k_THd, v_THd, grad_THd, grads_T3Hd, plan, ctx.scale, ctx.dropout, seed
        )
        if plan.tokens < tokens:
            grads_T3Hd[plan.tokens :] = 0
        return *grads_T3Hd.unbind(1), None, None, None, None


def _long_ends(plan: SequencePlan) -> Tensor:
    return plan.ends[: plan.long_sequences + 1]


def _with_one_stride(*tensors_THd: Tensor) -> tuple[Tensor, ...]:
    """Return tensors whose heads lie together and whose rows are equally far apart: views of one
    product as they are, others copied."""
    size = tensors_THd[0].shape[2]
    strides = {x.stride() for x in tensors_THd}
    if len(strides) == 1 and next(iter(strides))[1:] == (size, 1):
        return tensors_THd
    return tuple(x.contiguous() for x in tensors_THd)
