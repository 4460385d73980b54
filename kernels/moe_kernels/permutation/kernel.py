"""Triton kernels that move rows between the tokens' order and expert order, one pass each.

T tokens, R rows in expert order (row r of them is token order[r]), D hidden size. A program moves
whole rows, so the products of rows that a scale's gradient needs cost no second pass.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def gather_kernel(
    x_ptr, order_ptr, scale_ptr, y_ptr, other_ptr, dots_ptr, num_rows,
    D: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_DOTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write y_RD[r] = scale x_TD[order[r]]; with dots, also <x_TD[order[r]], other_RD[r]> to it."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_range = row < num_rows
    token = tl.load(order_ptr + row, mask=in_range, other=0).to(tl.int64)
    row = row.to(tl.int64)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + token, mask=in_range, other=0.0)
    dots = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        some = in_range[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + token[:, None] * D + d[None, :], mask=some, other=0.0)
        spot = row[:, None] * D + d[None, :]
        if HAS_DOTS:
            other = tl.load(other_ptr + spot, mask=some, other=0.0)
            dots += tl.sum(x.to(tl.float32) * other.to(tl.float32), 1)
        if HAS_SCALE:
            x = (x.to(tl.float32) * scale[:, None]).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + spot, x, mask=some)
    if HAS_DOTS:
        tl.store(dots_ptr + token, dots, mask=in_range)


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def scatter_kernel(
    y_ptr, order_ptr, scale_ptr, x_ptr, num_rows, num_tokens,
    D: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write x_TD[order[r]] = scale y_RD[r] for the first num_rows of order, 0 for the others."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_range = row < num_tokens
    token = tl.load(order_ptr + row, mask=in_range, other=0).to(tl.int64)
    row = row.to(tl.int64)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + token, mask=row < num_rows, other=0.0)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        some = (row < num_rows)[:, None] & (d < D)[None, :]
        y = tl.load(y_ptr + row[:, None] * D + d[None, :], mask=some, other=0.0)
        if HAS_SCALE:
            y = (y.to(tl.float32) * scale[:, None]).to(x_ptr.dtype.element_ty)
        all_rows = in_range[:, None] & (d < D)[None, :]
        tl.store(x_ptr + token[:, None] * D + d[None, :], y, mask=all_rows)
