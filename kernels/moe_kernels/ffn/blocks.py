"""The experts' FFNs expert by expert, gather and scatter included: the fast path of plain PyTorch.

Against autograd over the plain loop it takes a block's rows, does all that is done to them while a
core's cache has them, writes the result where it belongs instead of concatenating, and brings rows
back by gathering: scattering them takes a CPU three times as long. The inner tensors are kept, as
the dense FFN keeps them: computing GELU again costs more (4 ms at 4,096 tokens, D 384, bf16). Both
halves of a gated FFN come from one product, and their gradients go where one product reads them.

In 16 bits on a CPU, where every expert of every layer has another number of tokens in every step,
blocks are filled up to sizes that come again (recurring_size says why): at most 15 rows or an
eighth more. What stands in these gaps is computed and never read, and its gradient is zero.

T tokens, R routed tokens, P computed rows of all experts, N of one, D hidden size, F inner size,
H rows of W1 (F or, gated, 2 F), E experts.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_kernels.ffn.activation import ACTIVATIONS, Activation, apply_function
from moe_kernels.first_order import first_order
from moe_kernels.recurring import recurring_size

# recurring_size's step and sizes an octave, for 48 shapes of each product up to 4,096 rows. MiniLM
# with 4 experts has 24 products of experts' rows a layer and step: with 64 sizes an octave oneDNN's
# cache of 1,024 did not hold them, and a step of 128 examples compiled 53 products anew for ever
# (140 ms on one core). Now 13, of attention, as a dense step. What fills the gaps costs 4%.
_ROWS = (16, 8)

_CACHED_ROWS = 64
"""Rows of a gated FFN that go through all its elementwise steps before the next ones do."""


def ffn_by_block(
    x_TD: Tensor,
    counts: Sequence[int],
    weights: Sequence[Tensor | None],
    activation: str,
    order_R: Tensor | None = None,
    scale_T: Tensor | None = None,
) -> Tensor:
    """Return y_TD: row t through the expert in whose block of order_R it is, times scale_T[t].

    weights: w1, b1, w2, b2 of every expert, None for a missing bias. order_R None: the rows are
    sorted by expert already. Rows that order_R does not name are 0.
    """
    return _BlockFFN.apply(x_TD, order_R, scale_T, tuple(counts), ACTIVATIONS[activation], *weights)


class _BlockFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, order_R, scale_T, counts, activation, *weights):
        w1, b1, w2, b2 = _by_kind(weights)
        layout = _lay_out(counts, order_R, x_TD)
        keep_y = scale_T is not None and ctx.needs_input_grad[2]
        y_PD = layout.space_like(x_TD)
        saved = []
        for e, block in enumerate(layout.blocks):
            x_ND = layout.take(x_TD, block)
            h_NH = _linear(x_ND, w1[e], b1[e])
            g_NF, a_NF = _activate(h_NH, activation)
            _linear(a_NF, w2[e], b2[e], out=y_PD[block])
            saved.extend((x_ND, h_NH, g_NF, a_NF))
        y_TD = layout.by_token(y_PD)
        if scale_T is not None:
            scale_T1 = scale_T.to(y_TD.dtype).unsqueeze(1)
            y_TD = y_TD * scale_T1 if y_TD is y_PD and keep_y else y_TD.mul_(scale_T1)
        ctx.save_for_backward(scale_T, y_PD if keep_y else None, *weights, *saved)
        ctx.layout, ctx.activation = layout, activation
        return y_TD

    @staticmethod
    @first_order
    def backward(ctx, grad_y_TD):
        layout, gated = ctx.layout, ctx.activation.gated
        num_experts = len(layout.blocks)
        scale_T, y_PD, *rest = ctx.saved_tensors
        w1, _, w2, _ = _by_kind(rest[: 4 * num_experts])
        saved = iter(rest[4 * num_experts :])
        wants_x, _, wants_scale = ctx.needs_input_grad[:3]
        grads = [[None] * num_experts for _ in range(4)]
        grad_scale_P = layout.space_like(scale_T) if wants_scale else None
        grad_x_PD = layout.space_like(grad_y_TD) if wants_x else None
        buffer_NF = grad_y_TD.new_empty(layout.longest, w2[0].shape[1])
        gated_NH = grad_y_TD.new_empty(layout.longest, w1[0].shape[0]) if gated else buffer_NF
        for e, (block, count) in enumerate(zip(layout.blocks, layout.counts, strict=True)):
            x_ND, h_NH, g_NF, a_NF = (next(saved) for _ in range(4))
            wants_1, wants_b1, wants_2, wants_b2 = ctx.needs_input_grad[5 + e :: num_experts]
            gy_ND = layout.take(grad_y_TD, block)
            if wants_scale:
                grad_scale_P[block] = (gy_ND * y_PD[block]).sum(1)
            if scale_T is not None:
                scale_N1 = layout.take(scale_T, block).to(gy_ND.dtype).unsqueeze(1)
                gy_ND = gy_ND * scale_N1 if layout.order_P is None else gy_ND.mul_(scale_N1)
            if count < len(gy_ND):
                gy_ND[count:] = 0  # then a gap adds nothing to the weights' gradients
            if wants_2:
                grads[2][e] = gy_ND.t() @ a_NF
            if wants_b2:
                grads[3][e] = gy_ND.sum(0)
            if not (wants_1 or wants_b1 or wants_x):
                continue
            ga_NF = torch.mm(gy_ND, w2[e], out=buffer_NF[: len(h_NH)])
            gh_NH = _activate_grad(ga_NF, h_NH, g_NF, ctx.activation, gated_NH)
            if wants_1:
                grads[0][e] = gh_NH.t() @ x_ND
            if wants_b1:
                grads[1][e] = gh_NH.sum(0)
            if wants_x:
                torch.mm(gh_NH, w1[e], out=grad_x_PD[block])
        grad_x_TD = layout.by_token(grad_x_PD) if wants_x else None
        grad_scale_T = layout.by_token(grad_scale_P) if wants_scale else None
        return grad_x_TD, None, grad_scale_T, None, None, *(g for kind in grads for g in kind)


def _by_kind(weights: Sequence[Tensor | None]) -> list[Sequence[Tensor | None]]:
    """Return w1, b1, w2 and b2, E entries each."""
    num_experts = len(weights) // 4
    return [weights[i : i + num_experts] for i in range(0, len(weights), num_experts)]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _activate(h_NH: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return (the function of h, or of its first half; what goes into W2): one if not gated."""
    if not activation.gated:
        a_NF = apply_function(h_NH, activation.function)
        return a_NF, a_NF
    g_NF, a_NF = (h_NH.new_empty(len(h_NH), h_NH.shape[1] // 2) for _ in range(2))
    for activated, linear, g, a in _cached_rows(*h_NH.chunk(2, dim=1), g_NF, a_NF):
        _function(activated, activation.function, out=g)
        torch.mul(g, linear, out=a)
    return g_NF, a_NF


def _activate_grad(
    grad_a_NF: Tensor, h_NH: Tensor, g_NF: Tensor, activation: Activation, out_NH: Tensor
) -> Tensor:
    """Return dL/dh_NH from dL/da, which is overwritten; g_NF as _activate returned it.

    out_NH: whose first rows a gated FFN's is written to; another's takes the place of dL/da.
    """
    if not activation.gated:
        return _function_grad(grad_a_NF, h_NH, activation.function, out=grad_a_NF)
    out_NH = out_NH[: len(h_NH)]
    halves = (*h_NH.chunk(2, dim=1), *out_NH.chunk(2, dim=1))
    for grad, g, *parts in _cached_rows(grad_a_NF, g_NF, *halves):
        activated, linear, grad_activated, grad_linear = parts
        torch.mul(grad, g, out=grad_linear)
        _function_grad(grad.mul_(linear), activated, activation.function, out=grad_activated)
    return out_NH


def _cached_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return the same few rows of all tensors, then the next: on a CPU all fit a core's cache."""
    rows = _CACHED_ROWS if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _function(h: Tensor, function: str, out: Tensor) -> Tensor:
    """Write an Activation's function of h."""
    if function == "silu":
        return torch.ops.aten.silu.out(h, out=out)
    return torch.ops.aten.gelu.out(h, approximate=_approximate(function), out=out)


def _function_grad(grad: Tensor, h: Tensor, function: str, out: Tensor) -> Tensor:
    """Write the gradient of h from that of an Activation's function of h; `out` may be `grad`."""
    if function == "silu":
        return torch.ops.aten.silu_backward.grad_input(grad, h, grad_input=out)
    return torch.ops.aten.gelu_backward.grad_input(
        grad, h, approximate=_approximate(function), grad_input=out
    )


def _approximate(function: str) -> str:
    """Return torch's name of a form of GELU."""
    return "tanh" if function == "gelu_tanh" else "none"


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

    def take(self, x_T: Tensor, block: slice) -> Tensor:
        """Return the rows of a block: a view where rows are tokens as they are."""
        return x_T[block] if self.order_P is None else x_T.index_select(0, self.order_P[block])

    def space_like(self, x_T: Tensor) -> Tensor:
        """Return rows to be filled block by block; the row of idle tokens, the last, is 0."""
        space = x_T.new_empty((self.rows + self.idle, *x_T.shape[1:]))
        if self.idle:
            space[self.rows] = 0
        return space

    def by_token(self, x_P: Tensor) -> Tensor:
        """Return rows of blocks, made by space_like, as rows of tokens."""
        return x_P if self.places_T is None else x_P.index_select(0, self.places_T)


def _lay_out(counts: tuple[int, ...], order_R: Tensor | None, x_TD: Tensor) -> _Layout:
    """Return the layout of tokens sorted by order_R, the first counts[0] for expert 0, and on."""
    num_tokens, device = x_TD.shape[0], x_TD.device
    sizes = [recurring_size(count, device, x_TD.dtype, *_ROWS) for count in counts]
    ends = list(itertools.accumulate(sizes))
    blocks = tuple(slice(end - size, end) for size, end in zip(sizes, ends, strict=True))
    rows, routed = ends[-1], sum(counts)
    idle = routed < num_tokens
    if order_R is None and rows == num_tokens:
        return _Layout(blocks, counts, rows, idle, None, None)
    # A GPU's order_R goes on after the routed tokens.
    order_R = torch.arange(routed, device=device) if order_R is None else order_R[:routed].long()
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
