"""Launches of the Triton FFN kernels, and the experts' autograd Function on them.

R rows, D hidden size, F inner size, E experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_kernels import block_sizes
from moe_kernels.experts import address_table, alignment
from moe_kernels.ffn import kernel
from moe_kernels.implementation import interpreting


class GateTerm(NamedTuple):
    """What routing adds to dL/dx, when one launch computes both."""

    gate_ids_T: Tensor | None
    grad_logits_TE: Tensor
    gate_weight: Tensor
    shape: dict[str, int]


class ExpertGrads(NamedTuple):
    """Gradients of the experts: views, one an expert, of one tensor a kind."""

    w1: Sequence[Tensor]
    b1: Sequence[Tensor]
    w2: Sequence[Tensor]
    b2: Sequence[Tensor]


def launch_experts(
    x_RD: Tensor, order_R: Tensor | None, counts: Tensor, scale_R: Tensor | None,
    weights: Sequence[Tensor], tanh: bool, keep_h: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return (y_RD in the order of x_RD, h_RF in expert order if kept): two launches."""
    num_rows, hidden = x_RD.shape
    shared = _constants(x_RD, weights, order_R)
    inner = shared["F"]
    table, order = address_table(weights), x_RD if order_R is None else order_R
    a_RF = x_RD.new_empty(num_rows, inner)
    h_RF = torch.empty_like(a_RF) if keep_h else None
    y_RD = torch.empty_like(x_RD)
    with torch.cuda.device_of(x_RD):
        blocks = block_sizes.up_blocks(x_RD.dtype, num_rows, inner)
        kernel.up_kernel[_grid(num_rows, inner, shared["E"], blocks)](
            x_RD, order, counts, table, h_RF if keep_h else a_RF, a_RF, num_rows,
            KEEP_H=keep_h, TANH=tanh, PARTS=_parts(blocks), **shared, **blocks.options(),
        )  # fmt: skip
        blocks = block_sizes.down_blocks(x_RD.dtype, num_rows, hidden)
        kernel.down_kernel[_grid(num_rows, hidden, shared["E"], blocks)](
            a_RF, order, counts, table, a_RF if scale_R is None else scale_R, y_RD, num_rows,
            HAS_SCALE=scale_R is not None, **shared, **blocks.options(),
        )  # fmt: skip
    return y_RD, h_RF


def launch_down_grad(
    grad_y_RD: Tensor, order_R: Tensor | None, counts: Tensor, scale_R: Tensor | None,
    h_RF: Tensor, weights: Sequence[Tensor], tanh: bool,
):  # fmt: skip
    """Return (grad_h_RF, scaled_a_RF, scale's gradient in parts [P, R], bias parts): one launch."""
    (num_rows, hidden), inner = grad_y_RD.shape, h_RF.shape[1]
    shared = _constants(grad_y_RD, weights, order_R)
    blocks = block_sizes.down_grad_blocks(grad_y_RD.dtype, num_rows, inner)
    grid = _grid(num_rows, inner, shared["E"], blocks)
    tiles_n = triton.cdiv(inner, blocks.n)
    grad_h_RF, scaled_a_RF = torch.empty_like(h_RF), torch.empty_like(h_RF)

    def parts(*shape: int) -> Tensor:
        return grad_y_RD.new_empty(shape, dtype=torch.float32)

    scale_parts = parts(tiles_n, num_rows)
    tiles_m = grid[0] // tiles_n
    bias_parts = (parts(tiles_m, inner), parts(tiles_m, hidden), blocks.m)
    kernel.down_grad_kernel[grid](
        grad_y_RD, grad_y_RD if order_R is None else order_R, counts, address_table(weights),
        grad_y_RD if scale_R is None else scale_R, h_RF, grad_h_RF, scaled_a_RF, scale_parts,
        *bias_parts[:2], num_rows, HAS_SCALE=scale_R is not None, TANH=tanh,
        PARTS=_parts(blocks), **shared, **blocks.options(),
    )  # fmt: skip
    return grad_h_RF, scaled_a_RF, scale_parts, bias_parts


def launch_expert_grads(
    x_RD: Tensor, grad_y_RD: Tensor, order_R: Tensor | None, counts: Tensor,
    grad_h_RF: Tensor, scaled_a_RF: Tensor, bias_parts, num_experts: int,
) -> ExpertGrads:  # fmt: skip
    """Return the gradients of all experts' weights and biases: two launches."""
    hidden, inner = x_RD.shape[1], grad_h_RF.shape[1]
    shared = {
        "D": hidden, "F": inner, "E": num_experts,
        "SEGMENTS": triton.next_power_of_2(num_experts + 1),
    }  # fmt: skip
    blocks = block_sizes.weight_grad_blocks(x_RD.dtype, inner, hidden, num_experts)
    tiles = triton.cdiv(inner, blocks.m) * triton.cdiv(hidden, blocks.n)
    grad_w1 = x_RD.new_empty((num_experts, inner, hidden))
    grad_w2 = x_RD.new_empty((num_experts, hidden, inner))
    kernel.weight_grad_kernel[(tiles, num_experts, 2)](
        grad_h_RF, x_RD, scaled_a_RF, grad_y_RD, x_RD if order_R is None else order_R, counts,
        grad_w1, grad_w2, HAS_ORDER=order_R is not None, UPCAST=_upcast(x_RD),
        **shared, **blocks.options(),
    )  # fmt: skip
    grad_b1, grad_b2 = x_RD.new_empty(num_experts, inner), x_RD.new_empty(num_experts, hidden)
    parts_b1, parts_b2, rows_a_tile = bias_parts
    kernel.bias_grad_kernel[(triton.cdiv(inner + hidden, 128), num_experts)](
        parts_b1, parts_b2, counts, grad_b1, grad_b2, **shared,
        BLOCK_M=rows_a_tile, BLOCK=128, TILES=16,
    )  # fmt: skip
    return ExpertGrads(grad_w1.unbind(), grad_b1.unbind(), grad_w2.unbind(), grad_b2.unbind())


def launch_input_grad(
    grad_h_RF: Tensor, order_R: Tensor | None, counts: Tensor, weights: Sequence[Tensor],
    gate: GateTerm | None,
) -> Tensor:  # fmt: skip
    """Return dL/dx_RD in the caller's order, routing's term included if it is given: one launch."""
    num_rows = grad_h_RF.shape[0]
    hidden = weights[0].shape[1]
    grad_x_RD = grad_h_RF.new_empty(num_rows, hidden)
    shared = _constants(grad_x_RD, weights, order_R)
    blocks = block_sizes.up_grad_blocks(grad_h_RF.dtype, num_rows, hidden)
    shape = {"G": 0, "E_PAD": 1, "CHUNK": 16} if gate is None else dict(gate.shape)
    shape.pop("E", None)
    has_ids = gate is not None and gate.gate_ids_T is not None
    kernel.up_grad_kernel[_grid(num_rows, hidden, shared["E"], blocks)](
        grad_h_RF, grad_h_RF if order_R is None else order_R, counts, address_table(weights),
        grad_x_RD, gate.gate_ids_T if has_ids else grad_h_RF,
        grad_h_RF if gate is None else gate.grad_logits_TE,
        grad_h_RF if gate is None else gate.gate_weight, num_rows,
        HAS_IDS=has_ids, **shape, **shared, **blocks.options(),
    )  # fmt: skip
    return grad_x_RD


class TritonFFN(torch.autograd.Function):
    """The experts on rows listed by order_R (or sorted already), with every gradient."""

    @staticmethod
    def forward(ctx, x_RD, order_R, counts, scale_R, tanh: bool, *weights):
        needs_grad = any(ctx.needs_input_grad)
        y_RD, h_RF = launch_experts(x_RD, order_R, counts, scale_R, weights, tanh, needs_grad)
        ctx.save_for_backward(x_RD, order_R, counts, scale_R, h_RF, *weights)
        ctx.tanh = tanh
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_RD):
        x_RD, order_R, counts, scale_R, h_RF, *weights = ctx.saved_tensors
        grad_y_RD = grad_y_RD.contiguous()
        with torch.cuda.device_of(x_RD):
            grad_h_RF, scaled_a_RF, scale_parts, bias_parts = launch_down_grad(
                grad_y_RD, order_R, counts, scale_R, h_RF, weights, ctx.tanh
            )
            grad_x = grad_scale = None
            grads = (None,) * len(weights)
            if any(ctx.needs_input_grad[5:]):
                by_kind = launch_expert_grads(
                    x_RD, grad_y_RD, order_R, counts, grad_h_RF, scaled_a_RF, bias_parts,
                    len(weights) // 4,
                )  # fmt: skip
                grads = [tensor for kind in by_kind for tensor in kind]
            if ctx.needs_input_grad[0]:
                grad_x = launch_input_grad(grad_h_RF, order_R, counts, weights, None)
            if ctx.needs_input_grad[3]:
                grad_scale = scale_parts.sum(0)
        return grad_x, None, None, grad_scale, None, *grads


def _grid(num_rows: int, columns: int, num_experts: int, blocks) -> tuple[int]:
    """Return enough tiles for any split of the rows: the host does not know the counts."""
    tiles_m = (num_rows + (num_experts + 1) * (blocks.m - 1)) // blocks.m
    return (tiles_m * triton.cdiv(columns, blocks.n),)


def _parts(blocks) -> int:
    """Return into how many columns' parts an epilogue with GELU cuts a tile: 64 columns each."""
    return max(1, blocks.n // 64)


def _constants(x: Tensor, weights: Sequence[Tensor], order_R: Tensor | None) -> dict:
    num_experts = len(weights) // 4
    return {
        "D": x.shape[1],
        "F": weights[0].shape[0],
        "E": num_experts,
        "SEGMENTS": triton.next_power_of_2(num_experts + 1),
        "HAS_ORDER": order_R is not None,
        "ALIGN": alignment(weights),
        "UPCAST": _upcast(x),
    }


def _upcast(x: Tensor) -> bool:
    return interpreting() and x.dtype == torch.bfloat16
