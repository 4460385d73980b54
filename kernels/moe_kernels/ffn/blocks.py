"""The experts' FFNs expert by expert, gather and scatter included: the fast path of plain PyTorch.

Against autograd over the plain loop it keeps no copy of the inner activations (they are computed
again, into one buffer all experts share: fresh memory costs more than GELU does), writes each
block's result where it belongs instead of concatenating, and scatters without adding.

T tokens, R routed tokens, N one expert's tokens, D hidden size, F inner size, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_kernels.ffn.reference import ACTIVATIONS

gelu_out = torch.ops.aten.gelu.out
gelu_backward_out = torch.ops.aten.gelu_backward.grad_input


def ffn_by_block(
    x_TD: Tensor,
    counts: Sequence[int],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
    activation: str,
    order_R: Tensor | None = None,
    scale_T: Tensor | None = None,
) -> Tensor:
    """Return y_TD: row t through the expert in whose block of order_R it is, times scale_T[t].

    order_R None: the rows are sorted by expert already. Rows that order_R does not name are 0.
    """
    weights = (*w1, *b1, *w2, *b2)
    return _BlockFFN.apply(x_TD, order_R, scale_T, tuple(counts), ACTIVATIONS[activation], *weights)


class _BlockFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, order_R, scale_T, counts, approximate, *weights):
        num_experts = len(counts)
        w1, b1, w2, b2 = (
            weights[i : i + num_experts] for i in range(0, 4 * num_experts, num_experts)
        )
        full = sum(counts) == x_TD.shape[0]
        y_TD = (torch.empty_like if full else torch.zeros_like)(
            x_TD, memory_format=torch.contiguous_format
        )
        keep_y = scale_T is not None and ctx.needs_input_grad[2]
        buffer_NF = x_TD.new_empty(max(counts), w1[0].shape[0])
        kept = []
        for e, (first, end) in enumerate(_blocks(counts)):
            rows_N = slice(first, end) if order_R is None else order_R[first:end]
            x_ND = x_TD[first:end] if order_R is None else x_TD.index_select(0, rows_N)
            h_NF = torch.addmm(b1[e], x_ND, w1[e].t())
            a_NF = gelu_out(h_NF, approximate=approximate, out=buffer_NF[: end - first])
            y_ND = torch.addmm(b2[e], a_NF, w2[e].t())
            kept.append((x_ND, h_NF, y_ND) if keep_y else (x_ND, h_NF))
            if scale_T is not None:
                scale_N1 = scale_T[rows_N].to(y_ND.dtype).unsqueeze(1)
                y_ND = y_ND * scale_N1 if keep_y else y_ND.mul_(scale_N1)
            _put(y_TD, rows_N, y_ND)
        ctx.save_for_backward(order_R, scale_T, *weights, *(t for row in kept for t in row))
        ctx.counts, ctx.approximate, ctx.num_rows = counts, approximate, x_TD.shape[0]
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_TD):
        num_experts = len(ctx.counts)
        order_R, scale_T, *rest = ctx.saved_tensors
        weights, kept = rest[: 4 * num_experts], rest[4 * num_experts :]
        each = len(kept) // num_experts
        wants_x, _, wants_scale = ctx.needs_input_grad[:3]
        grads = [[None] * num_experts for _ in range(4)]
        shape, full = grad_y_TD.shape, sum(ctx.counts) == ctx.num_rows
        grad_x_TD = (
            (grad_y_TD.new_empty if full else grad_y_TD.new_zeros)(shape) if wants_x else None
        )
        grad_scale_T = torch.zeros_like(scale_T) if wants_scale else None
        inner = weights[0].shape[0]
        buffer_a_NF, buffer_g_NF = grad_y_TD.new_empty(2, max(ctx.counts), inner)
        for e, (first, end) in enumerate(_blocks(ctx.counts)):
            x_ND, h_NF = kept[e * each : e * each + 2]
            w1_FD, w2_DF = weights[e], weights[2 * num_experts + e]
            rows_N = slice(first, end) if order_R is None else order_R[first:end]
            gy_ND = grad_y_TD[first:end] if order_R is None else grad_y_TD.index_select(0, rows_N)
            if scale_T is not None:
                if wants_scale:
                    grad_scale_T[rows_N] = (gy_ND * kept[e * each + 2]).sum(1, dtype=scale_T.dtype)
                scale_N1 = scale_T[rows_N].to(gy_ND.dtype).unsqueeze(1)
                gy_ND = gy_ND * scale_N1 if order_R is None else gy_ND.mul_(scale_N1)
            wants_1, wants_b1, wants_2, wants_b2 = ctx.needs_input_grad[5 + e :: num_experts]
            if wants_2:
                a_NF = gelu_out(h_NF, approximate=ctx.approximate, out=buffer_a_NF[: end - first])
                grads[2][e] = gy_ND.t() @ a_NF
            if wants_b2:
                grads[3][e] = gy_ND.sum(0)
            if not (wants_1 or wants_b1 or wants_x):
                continue
            gh_NF = torch.mm(gy_ND, w2_DF, out=buffer_g_NF[: end - first])
            gelu_backward_out(gh_NF, h_NF, approximate=ctx.approximate, grad_input=gh_NF)
            if wants_1:
                grads[0][e] = gh_NF.t() @ x_ND
            if wants_b1:
                grads[1][e] = gh_NF.sum(0)
            if wants_x:
                _put(grad_x_TD, rows_N, gh_NF @ w1_FD)
        flat = (g for kind in grads for g in kind)
        return grad_x_TD, None, grad_scale_T, None, None, *flat


def _blocks(counts: Sequence[int]):
    first = 0
    for count in counts:
        yield first, first + count
        first += count


def _put(out_TD: Tensor, rows_N: slice | Tensor, y_ND: Tensor) -> None:
    if isinstance(rows_N, slice):
        out_TD[rows_N] = y_ND
    else:
        out_TD.index_copy_(0, rows_N, y_ND)
