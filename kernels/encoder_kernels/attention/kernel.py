"""Triton kernels of attention for short sequences: a program has one head of one sequence.

T tokens, H heads, D head size; N tokens of a sequence, of which a block holds all. So a row of
scores is whole: the softmax needs no second pass, the backward pass makes it again from query and
key and needs neither output nor sums of the forward pass, and all three gradients of a program are
its own: no atomics, one order of summation.
"""

import triton
import triton.language as tl

from encoder_kernels.bits import keep_tile
from moe_kernels.tiles import dot

# Columns that a head's weights have among the counters of dropout: those of the largest block.
HEAD_QUARTERS = tl.constexpr(32)


@triton.jit
def load_rows(ptr, token, in_range, stride, head, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return rows [BLOCK, BLOCK_D] of a head, 0 beyond the sequence and beyond D."""
    d = tl.arange(0, BLOCK_D)
    spot = ptr + token[:, None] * stride + head * D + d[None, :]
    return tl.load(spot, mask=in_range[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, value, token, in_range, stride, head, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write rows [BLOCK, BLOCK_D] of a head."""
    d = tl.arange(0, BLOCK_D)
    spot = ptr + token[:, None] * stride + head * D + d[None, :]
    some = in_range[:, None] & (d < D)[None, :]
    tl.store(spot, value.to(ptr.dtype.element_ty), mask=some)


@triton.jit
def exponentials(q, k, in_range, scale_log2, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    """Return exp(scale q k^T - the row's largest) [BLOCK, BLOCK], 0 beyond the sequence."""
    scores = dot(q, tl.trans(k), tl.zeros([BLOCK, BLOCK], tl.float32), UPCAST) * scale_log2
    scores = tl.where(in_range[None, :], scores, float("-inf"))
    return tl.exp2(scores - tl.max(scores, 1)[:, None])


@triton.jit(do_not_specialize=["first", "cut"])
def attend_kernel(
    q_ptr, k_ptr, v_ptr, ends_ptr, seed_ptr, out_ptr, first, stride, scale_log2, cut, up,
    H: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write out_THD of sequence first + pid // H; q, k and v have rows `stride` elements apart."""
    sequence, head = first + tl.program_id(0) // H, tl.program_id(0) % H
    start = tl.load(ends_ptr + sequence)
    row = start + tl.arange(0, BLOCK)
    in_range = row < tl.load(ends_ptr + sequence + 1)
    token = row.to(tl.int64)
    q = load_rows(q_ptr, token, in_range, stride, head, D, BLOCK_D)
    k = load_rows(k_ptr, token, in_range, stride, head, D, BLOCK_D)
    v = load_rows(v_ptr, token, in_range, stride, head, D, BLOCK_D)
    weights = exponentials(q, k, in_range, scale_log2, BLOCK, UPCAST)
    factor = up / tl.sum(weights, 1)
    if DROPOUT:
        keep = keep_tile(seed_ptr, row, head * HEAD_QUARTERS, cut, BLOCK, BLOCK)
        weights = tl.where(keep, weights, 0.0)
    out = dot(weights.to(v.dtype), v, tl.zeros([BLOCK, BLOCK_D], tl.float32), UPCAST)
    store_rows(out_ptr, out * factor[:, None], token, in_range, H * D, head, D, BLOCK_D)


@triton.jit(do_not_specialize=["first", "cut"])
def attend_grad_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, ends_ptr, seed_ptr, grads_ptr, first, stride, scale,
    scale_log2, cut, up,
    H: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradients of q, k and v, [T, 3, H, D], of sequence first + pid // H."""
    sequence, head = first + tl.program_id(0) // H, tl.program_id(0) % H
    start = tl.load(ends_ptr + sequence)
    row = start + tl.arange(0, BLOCK)
    in_range = row < tl.load(ends_ptr + sequence + 1)
    token = row.to(tl.int64)
    nothing = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    q = load_rows(q_ptr, token, in_range, stride, head, D, BLOCK_D)
    k = load_rows(k_ptr, token, in_range, stride, head, D, BLOCK_D)
    weights = exponentials(q, k, in_range, scale_log2, BLOCK, UPCAST)
    weights = weights / tl.sum(weights, 1)[:, None]
    v = load_rows(v_ptr, token, in_range, stride, head, D, BLOCK_D)
    grad = load_rows(grad_ptr, token, in_range, H * D, head, D, BLOCK_D)
    # Rows beyond the sequence have a gradient of 0, and so add nothing to the sums over rows.
    of_weights = dot(grad, tl.trans(v), tl.zeros([BLOCK, BLOCK], tl.float32), UPCAST)
    kept = weights
    if DROPOUT:
        keep = keep_tile(seed_ptr, row, head * HEAD_QUARTERS, cut, BLOCK, BLOCK)
        of_weights = tl.where(keep, of_weights * up, 0.0)
        kept = tl.where(keep, weights * up, 0.0)
    of_v = dot(tl.trans(kept.to(grad.dtype)), grad, nothing, UPCAST)
    store_rows(grads_ptr + 2 * H * D, of_v, token, in_range, 3 * H * D, head, D, BLOCK_D)
    along = tl.sum(of_weights * weights, 1)
    of_scores = (weights * (of_weights - along[:, None]) * scale).to(q.dtype)
    of_q = dot(of_scores, k, nothing, UPCAST)
    store_rows(grads_ptr, of_q, token, in_range, 3 * H * D, head, D, BLOCK_D)
    of_k = dot(tl.trans(of_scores), q, nothing, UPCAST)
    store_rows(grads_ptr + H * D, of_k, token, in_range, 3 * H * D, head, D, BLOCK_D)
