"""The experts' FFNs expert by expert, gather and scatter included: the fast path of plain PyTorch.

Against autograd over the plain loop it keeps no copy of the inner activations (they are computed
again, into one buffer all experts share: fresh memory costs more than GELU does), writes each
block's result where it belongs instead of concatenating, and brings rows back by gathering:
scattering them takes a CPU three times as long.

In 16 bits on a CPU, where every expert of every layer has another number of tokens in every step,
blocks are filled up to sizes that come again (recurring_size says why): at most 15 rows or 1.6%
more. What stands in these gaps is computed and never read, and its gradient is zero.

T tokens, R routed tokens, P computed rows (of all experts, or of one), D hidden size, F inner size,
E experts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
        layout = _lay_out(counts, order_R, x_TD)
        keep_y = scale_T is not None and ctx.needs_input_grad[2]
        x_PD = layout.by_expert(x_TD)
        y_PD = layout.space_like(x_TD)
        buffer_PF = x_TD.new_empty(layout.longest, w1[0].shape[0])
        h_EPF = []
        for e, block in enumerate(layout.blocks):
            h_PF = torch.addmm(b1[e], x_PD[block], w1[e].t())
            a_PF = gelu_out(h_PF, approximate=approximate, out=buffer_PF[: len(h_PF)])
            torch.addmm(b2[e], a_PF, w2[e].t(), out=y_PD[block])
            h_EPF.append(h_PF)
        y_TD = layout.by_token(y_PD)
        if scale_T is not None:
            scale_T1 = scale_T.to(y_TD.dtype).unsqueeze(1)
            y_TD = y_TD * scale_T1 if y_TD is y_PD and keep_y else y_TD.mul_(scale_T1)
        ctx.save_for_backward(scale_T, x_PD, y_PD if keep_y else None, *weights, *h_EPF)
        ctx.layout, ctx.approximate = layout, approximate
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_TD):
        layout = ctx.layout
        num_experts = len(layout.blocks)
        scale_T, x_PD, y_PD, *rest = ctx.saved_tensors
        weights, h_EPF = rest[: 4 * num_experts], rest[4 * num_experts :]
        wants_x, _, wants_scale = ctx.needs_input_grad[:3]
        grads = [[None] * num_experts for _ in range(4)]
        grad_scale_T = None
        gy_PD = layout.by_expert(grad_y_TD)
        if scale_T is not None:
            if wants_scale:
                grad_scale_P = layout.space_like(scale_T)
                gy_y_PD = gy_PD * y_PD[: layout.rows]
                torch.sum(gy_y_PD, 1, dtype=scale_T.dtype, out=grad_scale_P[: layout.rows])
                grad_scale_T = layout.by_token(grad_scale_P)
            scale_P1 = layout.by_expert(scale_T.to(gy_PD.dtype)).unsqueeze(1)
            gy_PD = gy_PD * scale_P1 if gy_PD is grad_y_TD else gy_PD.mul_(scale_P1)
        layout.clear_gaps(gy_PD)
        grad_x_PD = layout.space_like(grad_y_TD) if wants_x else None
        buffer_a_PF, buffer_g_PF = grad_y_TD.new_empty(2, layout.longest, weights[0].shape[0])
        for e, (block, h_PF) in enumerate(zip(layout.blocks, h_EPF, strict=True)):
            w1_FD, w2_DF = weights[e], weights[2 * num_experts + e]
            wants_1, wants_b1, wants_2, wants_b2 = ctx.needs_input_grad[5 + e :: num_experts]
            if wants_2:
                a_PF = gelu_out(h_PF, approximate=ctx.approximate, out=buffer_a_PF[: len(h_PF)])
                grads[2][e] = gy_PD[block].t() @ a_PF
            if wants_b2:
                grads[3][e] = gy_PD[block].sum(0)
            if not (wants_1 or wants_b1 or wants_x):
                continue
            gh_PF = torch.mm(gy_PD[block], w2_DF, out=buffer_g_PF[: len(h_PF)])
            gelu_backward_out(gh_PF, h_PF, approximate=ctx.approximate, grad_input=gh_PF)
            if wants_1:
                grads[0][e] = gh_PF.t() @ x_PD[block]
            if wants_b1:
                grads[1][e] = gh_PF.sum(0)
            if wants_x:
                torch.mm(gh_PF, w1_FD, out=grad_x_PD[block])
        flat = (g for kind in grads for g in kind)
        grad_x_TD = layout.by_token(grad_x_PD) if wants_x else None
        return grad_x_TD, None, grad_scale_T, None, None, *flat


@dataclass(frozen=True)
class _Layout:
    """Where tokens stand while experts work on them: blocks of computed rows, end to end.

    blocks: each expert's rows; counts: how many of them are tokens, the rest of a block is a gap.
    rows: all of them, P. order_P: the token of each row (a gap has token 0's). places_T: the row of
    each token; P for one that no expert has. Both None where rows are tokens as they are.
    """

    blocks: tuple[slice, ...]
    counts: tuple[int, ...]
    rows: int
    idle: bool  # some tokens have no expert
    order_P: Tensor | None
    places_T: Tensor | None

    @property
    def longest(self) -> int:
        return max(block.stop - block.start for block in self.blocks)

    def by_expert(self, x_T: Tensor) -> Tensor:
        """Return rows of tokens as rows of blocks."""
        return x_T if self.order_P is None else x_T.index_select(0, self.order_P)

    def space_like(self, x_T: Tensor) -> Tensor:
        """Return rows to be filled block by block; the row of idle tokens, the last, is 0."""
        space = x_T.new_empty((self.rows + self.idle, *x_T.shape[1:]))
        if self.idle:
            space[self.rows] = 0
        return space

    def by_token(self, x_P: Tensor) -> Tensor:
        """Return rows of blocks, made by space_like, as rows of tokens."""
        return x_P if self.places_T is None else x_P.index_select(0, self.places_T)

    def clear_gaps(self, x_P: Tensor) -> None:
        """Write zeros to the gaps: what they add to products of weights is nothing then."""
        for block, count in zip(self.blocks, self.counts, strict=True):
            if block.start + count < block.stop:
                x_P[block.start + count : block.stop] = 0


def _lay_out(counts: tuple[int, ...], order_R: Tensor | None, x_TD: Tensor) -> _Layout:
    """Return the layout of tokens sorted by order_R, the first counts[0] for expert 0, and on."""
    num_tokens, device = x_TD.shape[0], x_TD.device
    sizes = [recurring_size(count, device, x_TD.dtype) for count in counts]
    ends = list(itertools.accumulate(sizes))
    blocks = tuple(slice(end - size, end) for size, end in zip(sizes, ends, strict=True))
    rows, routed = ends[-1], sum(counts)
    idle = routed < num_tokens
    if order_R is None and rows == num_tokens:
        return _Layout(blocks, counts, rows, idle, None, None)
    order_R = torch.arange(routed, device=device) if order_R is None else order_R.long()
    if rows == routed:
        order_P, places_R = order_R, torch.arange(routed, device=device)
    else:
        starts = [
            torch.arange(block.start, block.start + count, device=device)
            for block, count in zip(blocks, counts, strict=True)
        ]
        places_R = torch.cat(starts)
        order_P = order_R.new_zeros(rows).index_copy_(0, places_R, order_R)
    places_T = order_R.new_full((num_tokens,), rows).index_copy_(0, order_R, places_R)
    return _Layout(blocks, counts, rows, idle, order_P, places_T)
