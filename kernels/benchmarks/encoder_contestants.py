"""What bench_encoder compares: attention, residual norm and projection, ours and torch's own ways.

A contestant is a function of the inputs to one tensor or several, or the reason why it cannot run
on this device.
T tokens, B sequences, H heads, d head size, D hidden size.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from encoder_kernels import attend, dropout_residual_norm, plan_of, project
from encoder_kernels.attention.flash import flash_backward, flash_forward
from encoder_kernels.projection.reference import project_reference
from moe_kernels import resolve_impl

Contestants = dict[str, Callable[..., Tensor | tuple[Tensor, ...]] | str]


def attention(
    lengths: Sequence[int], size: int, dtype: torch.dtype, device: torch.device, dropout: float
) -> Contestants:
    """Return functions of q, k and v [T, H, d] over sequences of these lengths, longest first."""
    plan, scale = plan_of(lengths, device), size**-0.5
    own, library = why_not_ours(device), _why_not_torchs(device, dtype)
    if not own and plan.long_sequences:
        own = _why_not_torchs(device, dtype)
    arguments = (plan.ends, plan.longest, dropout, scale)
    return {
        "padded SDPA": _padded(lengths, device, dtype, dropout, scale),
        "flash": library or (lambda q, k, v: _Flash.apply(q, k, v, *arguments)),
        "efficient": library or (lambda q, k, v: _Efficient.apply(q, k, v, *arguments)),
        "ours": own or (lambda q, k, v: attend(q, k, v, plan, scale, dropout, impl="triton")),
    }


def residual_norm(device: torch.device, dropout: float) -> Contestants:
    """Return functions of x, residual [T, D], weight and bias [D]."""

    def torchs(x, residual, weight, bias):
        return F.layer_norm(F.dropout(x, dropout) + residual, weight.shape, weight, bias, 1e-12)

    def ours(x, residual, weight, bias):
        return dropout_residual_norm(x, residual, weight, bias, 1e-12, dropout, impl="triton")

    return {"torch": torchs, "ours": why_not_ours(device) or ours}


def projection() -> Contestants:
    """Return functions of x [T, D], then three weights and three biases."""
    return {
        "three products": lambda x, *p: project_reference(x, p[:3], p[3:]),
        "one product": lambda x, *p: project(x, p[:3], p[3:]),
    }


def why_not_ours(device: torch.device) -> str:
    """Return why our Triton kernels cannot run there, "" where they can."""
    try:
        resolve_impl("triton", device)
    except ValueError as error:
        return str(error)
    return ""


def _why_not_torchs(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        return f"torch's operators over sequence offsets need a GPU, not {device.type}"
    return "" if dtype.itemsize == 2 else f"torch's flash takes 16 bits, not {dtype}"


def _padded(lengths, device, dtype, dropout, scale) -> Callable[..., Tensor]:
    """Return SDPA over groups that are padded to their longest: the groups are our blocks'."""
    plan, starts = plan_of(lengths, torch.device("cpu")), torch.tensor([0, *lengths]).cumsum(0)
    bounds = [(bucket.first, bucket.first + bucket.count) for bucket in plan.buckets]
    if plan.long_sequences:
        bounds.insert(0, (0, plan.long_sequences))
    groups = []
    for first, last in bounds:
        size_N1, place_1L = torch.tensor(lengths[first:last])[:, None], torch.arange(lengths[first])
        real_NL = place_1L < size_N1
        rows_NL = starts[first:last, None] + place_1L.where(real_NL, 0)
        bias = torch.zeros(real_NL.shape, dtype=dtype).masked_fill(~real_NL, -torch.inf)
        groups.append([x.to(device) for x in (rows_NL, bias[:, None, None], real_NL)])

    def attention(*inputs_THd: Tensor) -> Tensor:
        outputs = []
        for rows_NL, bias, real_NL in groups:
            q, k, v = (x[rows_NL].transpose(1, 2) for x in inputs_THd)
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
            outputs.append(out.transpose(1, 2)[real_NL])
        return torch.cat(outputs)

    return attention


class _Flash(torch.autograd.Function):
    """torch's flash over sequence offsets, sums in one order."""

    @staticmethod
    def forward(ctx, q_THd, k_THd, v_THd, ends, longest: int, dropout: float, scale: float):
        ctx.arguments = (ends, longest, dropout, scale)
        out_THd, saved = flash_forward(q_THd, k_THd, v_THd, *ctx.arguments)
        ctx.save_for_backward(q_THd, k_THd, v_THd, *saved)
        return out_THd

    @staticmethod
    def backward(ctx, grad_THd):
        inputs, saved = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        grads = flash_backward(grad_THd.contiguous(), *inputs, saved, *ctx.arguments)
        return *grads, None, None, None, None


class _Efficient(torch.autograd.Function):
    """torch's memory-efficient attention over sequence offsets; its sums may have any order."""

    @staticmethod
    def forward(ctx, q_THd, k_THd, v_THd, ends, longest: int, dropout: float, scale: float):
        batch = (x.unsqueeze(0) for x in (q_THd, k_THd, v_THd))
        out, logsumexp, seed, offset, _, _ = torch.ops.aten._efficient_attention_forward(
            *batch, None, ends, ends, longest, longest, dropout, 0, True, scale=scale
        )
        ctx.save_for_backward(q_THd, k_THd, v_THd, ends, out, logsumexp, seed, offset)
        ctx.longest, ctx.dropout, ctx.scale = longest, dropout, scale
        return out.squeeze(0)

    @staticmethod
    def backward(ctx, grad_THd):
        *inputs, ends, out, logsumexp, seed, offset = ctx.saved_tensors
        batch = (x.unsqueeze(0) for x in (grad_THd.contiguous(), *inputs))
        *grads, _ = torch.ops.aten._efficient_attention_backward(
            *batch, None, out, ends, ends, ctx.longest, ctx.longest, logsumexp, ctx.dropout, seed,
            offset, 0, False, scale=ctx.scale,
        )  # fmt: skip
        return *(grad.squeeze(0) for grad in grads), None, None, None, None
