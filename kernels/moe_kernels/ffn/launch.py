"""Launches of the Triton FFN kernels, and the experts' autograd Function on them.

R rows, D hidden size, F inner size, H rows of W1 (F or, gated, 2 F), E experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_kernels import block_sizes
from moe_kernels.block_sizes import cdiv, power_of_2
from moe_kernels.experts import address_table
from moe_kernels.ffn import kernel
from moe_kernels.ffn.activation import ACTIVATIONS, Activation
from moe_kernels.first_order import first_order
from moe_kernels.implementation import upcasts
from moe_kernels.routing.launch import GateTerm, gate_term_arguments

# Columns that an epilogue works on at a time, both halves of a gated FFN together: registers for 64
# with an activation, 32 with its derivative, leave a multiprocessor room for two programs, one of
# which multiplies while the other stores.
UP_PART, DOWN_GRAD_PART = 64, 32
SORT_ROWS, SORT_COLUMNS = 32, 128


class Experts(NamedTuple):
    """The experts as kernels take them, made once a pass: addresses, and what is constant."""

    table: Tensor  # int64, of w1, b1, w2 and b2 of every expert; 0 for a missing bias
    constants: dict[str, int]  # D, F, E, SEGMENTS
    align: int  # bytes
    activation: Activation
    has_b1: bool
    has_b2: bool

    @property
    def rows(self) -> int:
        """H, the rows of W1 and the columns of h."""
        return self.activation.halves * self.constants["F"]


class ExpertGrads(NamedTuple):
    """Gradients of the experts: views, one an expert, of one tensor a kind; None for no bias."""

    w1: Sequence[Tensor]
    b1: Sequence[Tensor | None]
    w2: Sequence[Tensor]
    b2: Sequence[Tensor | None]


class SortedRows(NamedTuple):
    """What the backward pass reads in expert order; dots [1 + tiles, R] sum to scale dL/dscale."""

    x_RD: Tensor
    dy_RD: Tensor  # times scale, if there is one
    dots: Tensor | None


def as_experts(weights: Sequence[Tensor | None], activation: str) -> Experts:
    """Return the experts of contiguous weights: w1, b1, w2, b2, E entries each (flat_weights)."""
    num_experts, (hidden, inner) = len(weights) // 4, weights[len(weights) // 2].shape
    table, align = address_table(weights)
    segments = power_of_2(num_experts + 1)
    constants = {"D": hidden, "F": inner, "E": num_experts, "SEGMENTS": segments}
    has_b1, has_b2 = (weights[i * num_experts] is not None for i in (1, 3))
    return Experts(table, constants, align, ACTIVATIONS[activation], has_b1, has_b2)


def launch_experts(
    x_RD: Tensor, order_R: Tensor | None, counts: Tensor, scale_R: Tensor | None,
    experts: Experts, keep_h: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Return (y_RD in the order of x_RD; h_RH if kept, a_RF, in expert order): two launches."""
    num_rows, hidden = x_RD.shape
    shared = experts.constants | {
        "HAS_ORDER": order_R is not None, "ALIGN": experts.align, "UPCAST": upcasts(x_RD.dtype),
    }  # fmt: skip
    order = x_RD if order_R is None else order_R
    a_RF = x_RD.new_empty(num_rows, experts.constants["F"])
    h_RH = x_RD.new_empty(num_rows, experts.rows) if keep_h else None
    function, halves = experts.activation.function, experts.activation.halves
    y_RD = torch.empty_like(x_RD)
    with torch.cuda.device_of(x_RD):
        blocks = block_sizes.up_blocks(x_RD.dtype, num_rows, experts.rows)
        kernel.up_kernel[_grid(num_rows, experts.rows, experts, blocks)](
            x_RD, order, counts, experts.table, h_RH if keep_h else a_RF, a_RF, num_rows,
            HALVES=halves, FUNCTION=function, HAS_B1=experts.has_b1, KEEP_H=keep_h,
            EXACT=_exact(x_RD), PARTS=_parts(blocks.n // halves, UP_PART // halves),
            **shared, **blocks.options(),
        )  # fmt: skip
        blocks = block_sizes.down_blocks(x_RD.dtype, num_rows, hidden)
        kernel.down_kernel[_grid(num_rows, hidden, experts, blocks)](
            a_RF, order, counts, experts.table, a_RF if scale_R is None else scale_R, y_RD,
            num_rows, HAS_B2=experts.has_b2, HAS_SCALE=scale_R is not None, **shared,
            **blocks.options(),
        )  # fmt: skip
    return y_RD, h_RH, a_RF


def launch_sort_rows(
    x_RD: Tensor, grad_y_RD: Tensor, order_R: Tensor, counts: Tensor, scale_R: Tensor | None,
    experts: Experts, wants_dots: bool,
) -> SortedRows:  # fmt: skip
    """Return x and scale dy in expert order, and dots with its first part: one launch."""
    num_rows, num_experts = x_RD.shape[0], experts.constants["E"]
    dots = None
    if wants_dots:
        tiles = cdiv(experts.constants["F"], _down_grad_blocks(x_RD, experts).n)
        dots = x_RD.new_empty((1 + tiles, num_rows), dtype=torch.float32)
    rows = SortedRows(torch.empty_like(x_RD), torch.empty_like(x_RD), dots)
    constants = {key: experts.constants[key] for key in ("D", "E", "SEGMENTS")}
    kernel.sort_rows_kernel[(_tiles(num_rows, num_experts, SORT_ROWS),)](
        x_RD, grad_y_RD, order_R, counts, experts.table, x_RD if scale_R is None else scale_R,
        rows.x_RD, rows.dy_RD, rows.x_RD if dots is None else dots, num_rows, **constants,
        HAS_B2=experts.has_b2, HAS_SCALE=scale_R is not None, HAS_DOTS=wants_dots,
        BLOCK_M=SORT_ROWS, BLOCK_N=SORT_COLUMNS, num_warps=4,
    )  # fmt: skip
    return rows


def launch_down_grad(
    rows: SortedRows, order_R: Tensor | None, counts: Tensor, h_RH: Tensor, experts: Experts,
    in_place: bool,
) -> Tensor:  # fmt: skip
    """Return dL/dh_RH, in h's place if it may be, and fill the rest of dots: one launch."""
    dy_RD, dots = rows.dy_RD, rows.dots
    num_rows = dy_RD.shape[0]
    blocks = _down_grad_blocks(dy_RD, experts)
    part = DOWN_GRAD_PART // experts.activation.halves
    grad_h_RH = h_RH if in_place else torch.empty_like(h_RH)
    kernel.down_grad_kernel[_grid(num_rows, experts.constants["F"], experts, blocks)](
        dy_RD, dy_RD if order_R is None else order_R, counts, experts.table, h_RH, grad_h_RH,
        dy_RD if dots is None else dots, num_rows, HALVES=experts.activation.halves,
        FUNCTION=experts.activation.function, HAS_DOTS=dots is not None,
        EXACT=_exact(dy_RD), ALIGN=experts.align, UPCAST=upcasts(dy_RD.dtype),
        PARTS=_parts(blocks.n, part), **experts.constants, **blocks.options(),
    )  # fmt: skip
    return grad_h_RH


def launch_expert_grads(
    rows: SortedRows, counts: Tensor, grad_h_RH: Tensor, a_RF: Tensor, experts: Experts
) -> ExpertGrads:
    """Return the gradients of all experts' weights and biases: one launch."""
    num_experts, hidden, inner = (experts.constants[key] for key in "EDF")
    new, halves = rows.x_RD.new_empty, experts.activation.halves
    blocks = block_sizes.weight_grad_blocks(rows.x_RD.dtype, inner, hidden, num_experts)
    tiles = cdiv(inner, blocks.m) * cdiv(hidden, blocks.n)
    w1, w2 = new((num_experts, experts.rows, hidden)), new((num_experts, hidden, inner))
    b1 = new((num_experts, experts.rows)) if experts.has_b1 else None
    b2 = new((num_experts, hidden)) if experts.has_b2 else None
    kernel.weight_grad_kernel[(tiles, num_experts, halves + 1)](
        grad_h_RH, rows.x_RD, a_RF, rows.dy_RD, counts,
        w1, w1 if b1 is None else b1, w2, w2 if b2 is None else b2,
        HALVES=halves, HAS_B1=experts.has_b1, HAS_B2=experts.has_b2,
        UPCAST=upcasts(rows.x_RD.dtype), **experts.constants, **blocks.options(),
    )  # fmt: skip
    none = (None,) * num_experts
    return ExpertGrads(*(none if grad is None else grad.unbind() for grad in (w1, b1, w2, b2)))


def launch_input_grad(
    grad_h_RH: Tensor, order_R: Tensor | None, counts: Tensor, experts: Experts,
    gate: GateTerm | None,
) -> Tensor:  # fmt: skip
    """Return dL/dx_RD in the caller's order, routing's term included if it is given: one launch."""
    num_rows, hidden = grad_h_RH.shape[0], experts.constants["D"]
    grad_x_RD = grad_h_RH.new_empty(num_rows, hidden)
    blocks = block_sizes.up_grad_blocks(grad_h_RH.dtype, num_rows, hidden)
    tensors, constants = gate_term_arguments(gate, grad_h_RH)
    constants |= {key: experts.constants[key] for key in ("D", "E", "SEGMENTS")}
    kernel.up_grad_kernel[_grid(num_rows, hidden, experts, blocks)](
        grad_h_RH, grad_h_RH if order_R is None else order_R, counts, experts.table, grad_x_RD,
        *tensors, num_rows, H=experts.rows, HAS_ORDER=order_R is not None, ALIGN=experts.align,
        UPCAST=upcasts(grad_h_RH.dtype), **constants, **blocks.options(),
    )  # fmt: skip
    return grad_x_RD


class TritonFFN(torch.autograd.Function):
    """The experts on rows listed by order_R (or sorted already), with every gradient."""

    @staticmethod
    def forward(ctx, x_RD, order_R, counts, activation: str, *weights):
        experts = as_experts(weights, activation)
        y_RD, h_RH, a_RF = launch_experts(
            x_RD, order_R, counts, None, experts, any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(x_RD, order_R, counts, h_RH, a_RF, *weights)
        ctx.activation = activation
        return y_RD

    @staticmethod
    @first_order
    def backward(ctx, grad_y_RD):
        x_RD, order_R, counts, h_RH, a_RF, *weights = ctx.saved_tensors
        grad_y_RD, experts = grad_y_RD.contiguous(), as_experts(weights, ctx.activation)
        grad_x, grads = None, (None,) * len(weights)
        with torch.cuda.device_of(x_RD):
            rows = SortedRows(x_RD, grad_y_RD, None)
            if order_R is not None:
                rows = launch_sort_rows(x_RD, grad_y_RD, order_R, counts, None, experts, False)
            grad_h_RH = launch_down_grad(rows, None, counts, h_RH, experts, may_overwrite())
            if any(ctx.needs_input_grad[4:]):
                by_kind = launch_expert_grads(rows, counts, grad_h_RH, a_RF, experts)
                grads = [tensor for kind in by_kind for tensor in kind]
            if ctx.needs_input_grad[0]:
                grad_x = launch_input_grad(grad_h_RH, order_R, counts, experts, None)
        return grad_x, None, None, None, *grads


def may_overwrite() -> bool:
    """Return whether this backward pass is the last that will read what the forward pass saved.

    It is not under retain_graph=True. torch's own compiled graphs ask the same for the buffers that
    they reuse.
    """
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def _down_grad_blocks(x: Tensor, experts: Experts):
    return block_sizes.down_grad_blocks(x.dtype, x.shape[0], experts.constants["F"])


def _grid(num_rows: int, columns: int, experts: Experts, blocks) -> tuple[int]:
    """Return enough tiles for any split of the rows: the host does not know the counts."""
    tiles_m = _tiles(num_rows, experts.constants["E"], blocks.m)
    return (tiles_m * cdiv(columns, blocks.n),)


def _tiles(num_rows: int, num_experts: int, block: int) -> int:
    return (num_rows + (num_experts + 1) * (block - 1)) // block


def _parts(tile: int, columns: int) -> int:
    """Return into how many parts of about so many columns an epilogue cuts a tile: 1, 2, 4 or 8."""
    return min(8, max(1, tile // columns))


def _exact(x: Tensor) -> bool:
    """Return whether GELU is computed to the last bits of float32."""
    return x.dtype == torch.float32
