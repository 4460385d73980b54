"""The experts' FFNs expert by expert, gather and scatter included: the fast path of plain PyTorch.

Against autograd over the plain loop it keeps no copy of the inner activations (they are computed
again, into one buffer all experts share: fresh memory costs more than GELU does), writes each
block's result where it belongs instead of concatenating, and scatters without adding.

In 16 bits on a CPU, where every expert of every layer has another number of tokens in every step,
blocks are filled up with rows of zeros to sizes that come again (recurring_size says why): at most
15 rows or 1.6% more.

T tokens, R routed tokens, N one expert's tokens, P its computed rows (P - N of them zero),
D hidden size, F inner size, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_kernels.ffn.reference import ACTIVATIONS
from moe_kernels.recurring import recurring_size

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
        computed = [recurring_size(count, x_TD.device, x_TD.dtype) for count in counts]
        buffer_PF = x_TD.new_empty(max(computed), w1[0].shape[0])
        kept = []
        for e, (first, end) in enumerate(_blocks(counts)):
            rows_N = slice(first, end) if order_R is None else order_R[first:end]
            x_PD = _take(x_TD, rows_N, end - first, computed[e])
            h_PF = torch.addmm(b1[e], x_PD, w1[e].t())
            a_PF = gelu_out(h_PF, approximate=approximate, out=buffer_PF[: computed[e]])
            y_ND = torch.addmm(b2[e], a_PF, w2[e].t())[: end - first]
            kept.append((x_PD, h_PF, y_ND) if keep_y else (x_PD, h_PF))
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
        most = max(kept[e * each].shape[0] for e in range(num_experts))
        buffer_a_PF, buffer_g_PF = grad_y_TD.new_empty(2, most, weights[0].shape[0])
        for e, (first, end) in enumerate(_blocks(ctx.counts)):
            x_PD, h_PF = kept[e * each : e * each + 2]
            num_computed = x_PD.shape[0]
            w1_FD, w2_DF = weights[e], weights[2 * num_experts + e]
            rows_N = slice(first, end) if order_R is None else order_R[first:end]
            gy_PD = _take(grad_y_TD, rows_N, end - first, num_computed)
            if scale_T is not None:
                gy_ND = gy_PD[: end - first]
                if wants_scale:
                    grad_scale_T[rows_N] = (gy_ND * kept[e * each + 2]).sum(1, dtype=scale_T.dtype)
                scale_N1 = scale_T[rows_N].to(gy_PD.dtype).unsqueeze(1)
                if order_R is None and num_computed == end - first:  # a view of grad_y_TD
                    gy_PD = gy_ND * scale_N1
                else:
                    gy_ND.mul_(scale_N1)
            wants_1, wants_b1, wants_2, wants_b2 = ctx.needs_input_grad[5 + e :: num_experts]
            if wants_2:
                a_PF = gelu_out(h_PF, approximate=ctx.approximate, out=buffer_a_PF[:num_computed])
                grads[2][e] = gy_PD.t() @ a_PF
            if wants_b2:
                grads[3][e] = gy_PD.sum(0)
            if not (wants_1 or wants_b1 or wants_x):
                continue
            gh_PF = torch.mm(gy_PD, w2_DF, out=buffer_g_PF[:num_computed])
            gelu_backward_out(gh_PF, h_PF, approximate=ctx.approximate, grad_input=gh_PF)
            if wants_1:
                grads[0][e] = gh_PF.t() @ x_PD
            if wants_b1:
                grads[1][e] = gh_PF.sum(0)
            if wants_x:
                _put(grad_x_TD, rows_N, (gh_PF @ w1_FD)[: end - first])
        flat = (g for kind in grads for g in kind)
        return grad_x_TD, None, grad_scale_T, None, None, *flat


def _take(x_TD: Tensor, rows_N: slice | Tensor, count: int, num_computed: int) -> Tensor:
    """Return x_PD: the rows named, then zeros; a view of x where nothing need be copied."""
    if num_computed == count:
        return x_TD[rows_N] if isinstance(rows_N, slice) else x_TD.index_select(0, rows_N)
    x_PD = x_TD.new_empty(num_computed, x_TD.shape[1])
    if isinstance(rows_N, slice):
        x_PD[:count] = x_TD[rows_N]
    else:
        torch.index_select(x_TD, 0, rows_N, out=x_PD[:count])
    x_PD[count:] = 0
    return x_PD


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
