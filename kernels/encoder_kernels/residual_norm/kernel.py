"""Triton kernels of dropout + residual + LayerNorm: one pass over the rows in each direction.

T rows, D their width. The sum is not stored: the backward pass makes it again from what went in,
which costs the bytes that writing and reading it would. Sums over rows have a fixed order.
"""

import triton
import triton.language as tl

from encoder_kernels.bits import keep_tile


@triton.jit(do_not_specialize=["num_rows", "cut"])
def residual_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, seed_ptr, y_ptr, mean_ptr, rstd_ptr, num_rows,
    cut, up, eps,
    D: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write y_TD = LayerNorm(dropout(x) + residual), and each row's mean and 1 / deviation."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_range = row < num_rows
    some = in_range[:, None] & (d < D)[None, :]
    spot = row.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(x_ptr + spot, mask=some, other=0.0).to(tl.float32)
    if DROPOUT:
        x = tl.where(keep_tile(seed_ptr, row, 0, cut, BLOCK_M, BLOCK_D), x * up, 0.0)
    z = x + tl.load(residual_ptr + spot, mask=some, other=0.0).to(tl.float32)
    mean = tl.sum(z, 1) / D
    centred = tl.where((d < D)[None, :], z - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / D + eps)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + spot, y.to(y_ptr.dtype.element_ty), mask=some)
    tl.store(mean_ptr + row, mean, mask=in_range)
    tl.store(rstd_ptr + row, rstd, mask=in_range)


@triton.jit(do_not_specialize=["num_rows", "rows_each", "cut"])
def residual_norm_grad_kernel(
    grad_y_ptr, x_ptr, residual_ptr, weight_ptr, mean_ptr, rstd_ptr, seed_ptr,
    grad_x_ptr, grad_residual_ptr, parts_ptr, num_rows, rows_each, cut, up,
    D: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write dx_TD and dresidual_TD (without dropout they are one), and a program's part of dweight
    and dbias: parts [programs, 2, D], over its rows_each rows in their order."""
    d = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_D], tl.float32)
    grad_bias = tl.zeros([BLOCK_D], tl.float32)
    start = tl.program_id(0) * rows_each
    for first in range(start, tl.minimum(start + rows_each, num_rows), BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        in_range = row < num_rows
        some = in_range[:, None] & (d < D)[None, :]
        spot = row.to(tl.int64)[:, None] * D + d[None, :]
        z = tl.load(x_ptr + spot, mask=some, other=0.0).to(tl.float32)
        if DROPOUT:
            keep = keep_tile(seed_ptr, row, 0, cut, BLOCK_M, BLOCK_D)
            z = tl.where(keep, z * up, 0.0)
        z += tl.load(residual_ptr + spot, mask=some, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=in_range, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=in_range, other=0.0)
        normed = tl.where(some, (z - mean[:, None]) * rstd[:, None], 0.0)
        grad_y = tl.load(grad_y_ptr + spot, mask=some, other=0.0).to(tl.float32)
        grad_weight += tl.sum(grad_y * normed, 0)
        grad_bias += tl.sum(grad_y, 0)
        scaled = grad_y * weight[None, :]
        along = tl.sum(scaled * normed, 1) / D
        level = tl.sum(scaled, 1) / D
        grad_z = (scaled - level[:, None] - normed * along[:, None]) * rstd[:, None]
        element = grad_residual_ptr.dtype.element_ty
        tl.store(grad_residual_ptr + spot, grad_z.to(element), mask=some)
        if DROPOUT:
            tl.store(grad_x_ptr + spot, tl.where(keep, grad_z * up, 0.0).to(element), mask=some)
    parts = parts_ptr + tl.program_id(0).to(tl.int64) * 2 * D + d
    tl.store(parts, grad_weight, mask=d < D)
    tl.store(parts + D, grad_bias, mask=d < D)


@triton.jit(do_not_specialize=["num_parts"])
def sum_parts_kernel(
    parts_ptr, grad_weight_ptr, grad_bias_ptr, num_parts,
    D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dweight_D or dbias_D, by the second program number: the sum of all programs' parts."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_bias = tl.program_id(1)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first in range(0, num_parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        spot = (part[:, None] * 2 + is_bias) * D + c[None, :]
        total += tl.load(
            parts_ptr + spot, mask=(part < num_parts)[:, None] & (c < D)[None, :], other=0.0
        )
    grad = tl.sum(total, 0)
    if is_bias == 1:
        tl.store(grad_bias_ptr + c, grad.to(grad_bias_ptr.dtype.element_ty), mask=c < D)
    else:
        tl.store(grad_weight_ptr + c, grad.to(grad_weight_ptr.dtype.element_ty), mask=c < D)
