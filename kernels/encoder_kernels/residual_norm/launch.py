"""Launches of the residual norm's kernels: one forward, two backward.

T rows, D their width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from encoder_kernels.dropout import cut_of, scale_of
from encoder_kernels.residual_norm import kernel
from moe_kernels.block_sizes import MULTIPROCESSORS, cdiv, power_of_2

# Elements of a program's tile, and how many programs share the rows of the backward pass: enough to
# fill an H100 four times, few enough that their sums cost little beside the rows (our choice; it
# decides the order of summation, so it is the same on every card).
FORWARD_TILE, BACKWARD_TILE = 4096, 2048
PROGRAMS = 4 * MULTIPROCESSORS
SUM_PARTS, SUM_COLUMNS = 64, 32


class Rows(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x_TD: Tensor
    residual_TD: Tensor
    weight_D: Tensor
    mean_T: Tensor
    rstd_T: Tensor
    seed: Tensor | None


def launch_residual_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, seed: Tensor | None,
    eps: float, dropout: float,
) -> tuple[Tensor, Rows]:  # fmt: skip
    """Return (y_TD, what the backward pass needs): one launch."""
    num_rows, width = x_TD.shape
    y_TD = torch.empty_like(x_TD)
    mean_T, rstd_T = (x_TD.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    block_d, block_m = _tile(width, FORWARD_TILE)
    if num_rows:
        with torch.cuda.device_of(x_TD):
            kernel.residual_norm_kernel[(cdiv(num_rows, block_m),)](
                x_TD, residual_TD, weight_D, bias_D, x_TD if seed is None else seed, y_TD,
                mean_T, rstd_T, num_rows, cut_of(dropout), scale_of(dropout), eps,
                D=width, DROPOUT=dropout > 0, BLOCK_M=block_m, BLOCK_D=block_d, num_warps=8,
            )  # fmt: skip
    return y_TD, Rows(x_TD, residual_TD, weight_D, mean_T, rstd_T, seed)


def launch_residual_norm_grad(
    grad_y_TD: Tensor, rows: Rows, bias_dtype: torch.dtype, dropout: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of x_TD, residual_TD, weight_D and bias_D: two launches.

    Without dropout the first two are one tensor.
    """
    num_rows, width = grad_y_TD.shape
    grad_residual_TD = torch.empty_like(grad_y_TD)
    grad_x_TD = torch.empty_like(grad_y_TD) if dropout > 0 else grad_residual_TD
    grad_weight_D = torch.empty_like(rows.weight_D)
    grad_bias_D = torch.empty_like(rows.weight_D, dtype=bias_dtype)
    block_d, block_m = _tile(width, BACKWARD_TILE)
    rows_each = cdiv(cdiv(num_rows, block_m), PROGRAMS) * block_m
    programs = cdiv(num_rows, rows_each) if num_rows else 0
    parts = grad_y_TD.new_empty((programs, 2, width), dtype=torch.float32)
    with torch.cuda.device_of(grad_y_TD):
        if num_rows:
            kernel.residual_norm_grad_kernel[(programs,)](
                grad_y_TD, rows.x_TD, rows.residual_TD, rows.weight_D, rows.mean_T, rows.rstd_T,
                rows.x_TD if rows.seed is None else rows.seed, grad_x_TD, grad_residual_TD, parts,
                num_rows, rows_each, cut_of(dropout), scale_of(dropout),
                D=width, DROPOUT=dropout > 0, BLOCK_M=block_m, BLOCK_D=block_d, num_warps=8,
            )  # fmt: skip
        kernel.sum_parts_kernel[(cdiv(width, SUM_COLUMNS), 2)](
            parts, grad_weight_D, grad_bias_D, programs,
            D=width, BLOCK_P=SUM_PARTS, BLOCK_C=SUM_COLUMNS,
        )  # fmt: skip
    return grad_x_TD, grad_residual_TD, grad_weight_D, grad_bias_D


def _tile(width: int, elements: int) -> tuple[int, int]:
    """Return the columns (all of them) and rows of a tile."""
    columns = max(16, power_of_2(width))
    return columns, min(16, max(1, elements // columns))
