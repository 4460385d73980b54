"""Triton kernels of the experts' FFNs: grouped products over rows listed expert by expert.

R rows in expert order, T rows as the caller holds them (row r of the one is row order[r] of the
other), D hidden size, F inner size, E experts. Weights are read through a table of addresses, so
every expert keeps its own parameters. Nothing here waits for the host, adds atomically or reads a
row that was not written.
"""

import triton
import triton.language as tl

from moe_kernels.routing.kernel import add_gate_term
from moe_kernels.tiles import (
    column_part,
    dot,
    expert_pointer,
    gelu_and_slope,
    load_columns,
    load_tile,
    locate_tile,
    segment_rows,
)


@triton.jit
def caller_rows(order_ptr, row, HAS_ORDER: tl.constexpr):
    """Return where rows in expert order (all of them there) lie in the caller's order, int64."""
    if HAS_ORDER:
        return tl.load(order_ptr + row).to(tl.int64)
    return row.to(tl.int64)


@triton.jit(do_not_specialize=["num_rows"])
def up_kernel(
    x_ptr, order_ptr, counts_ptr, table_ptr, h_ptr, a_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_ORDER: tl.constexpr, KEEP_H: tl.constexpr, TANH: tl.constexpr, ALIGN: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write h_RF = x W1^T + b1 (if it is kept for the backward pass) and a_RF = GELU(h)."""
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    expert, first, end = locate_tile(counts_ptr, pid // TILES_N, num_rows, E, SEGMENTS, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    token = caller_rows(order_ptr, tl.minimum(row, end - 1), HAS_ORDER)
    n0 = (pid % TILES_N) * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    w1 = expert_pointer(table_ptr, expert, x_ptr)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = load_columns(x_ptr + token[:, None] * D + k[None, :], k, D, BLOCK_K)
        spot = tl.multiple_of(w1 + n[None, :] * D + k[:, None], [ALIGN, 1])
        acc = dot(x, load_tile(spot, k, D, BLOCK_K, n, F, BLOCK_N), acc, UPCAST)
    b1_ptr = expert_pointer(table_ptr + E, expert, x_ptr)
    for p in tl.static_range(PARTS):
        part = column_part(acc, p, PARTS, BLOCK_M, BLOCK_N)
        n = n0 + p * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS)
        b1 = tl.load(b1_ptr + n, mask=n < F, other=0.0)
        h = (part + b1.to(tl.float32)[None, :]).to(h_ptr.dtype.element_ty)
        out = row.to(tl.int64)[:, None] * F + n[None, :]
        some = in_range[:, None] & (n < F)[None, :]
        if KEEP_H:
            tl.store(h_ptr + out, h, mask=some)
        a, _ = gelu_and_slope(h.to(tl.float32), TANH)
        tl.store(a_ptr + out, a.to(a_ptr.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=["num_rows"])
def down_kernel(
    a_ptr, order_ptr, counts_ptr, table_ptr, scale_ptr, y_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_SCALE: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write y_TD = scale (a W2^T + b2) where each row came from, and 0 in rows not routed."""
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    expert, first, end = locate_tile(counts_ptr, pid // TILES_N, num_rows, E, SEGMENTS, BLOCK_M)
    if expert > E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    row = tl.minimum(row, end - 1)
    token = caller_rows(order_ptr, row, HAS_ORDER)
    n = (pid % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = y_ptr + token[:, None] * D + n[None, :]
    some = in_range[:, None] & (n < D)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if expert == E:
        tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=some)
        return
    w2 = expert_pointer(table_ptr + 2 * E, expert, a_ptr)
    a_rows = a_ptr + row.to(tl.int64)[:, None] * F
    for k0 in range(0, F, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = load_columns(a_rows + k[None, :], k, F, BLOCK_K)
        spot = tl.multiple_of(w2 + n[None, :] * F + k[:, None], [ALIGN, 1])
        acc = dot(a, load_tile(spot, k, F, BLOCK_K, n, D, BLOCK_N), acc, UPCAST)
    b2 = tl.load(expert_pointer(table_ptr + 3 * E, expert, a_ptr) + n, mask=n < D, other=0.0)
    acc += b2.to(tl.float32)[None, :]
    if HAS_SCALE:
        acc = acc * tl.load(scale_ptr + token, mask=in_range, other=0.0)[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=["num_rows"])
def down_grad_kernel(
    grad_y_ptr, order_ptr, counts_ptr, table_ptr, scale_ptr, h_ptr,
    grad_h_ptr, scaled_a_ptr, grad_scale_parts_ptr, grad_b1_parts_ptr, grad_b2_parts_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_SCALE: tl.constexpr, TANH: tl.constexpr, ALIGN: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write dL/dh and scale * GELU(h) in expert order, and parts of three small gradients.

    With u = dy W2: dh = scale u GELU'(h), and the scale's gradient <dy, a W2^T + b2> is
    <u, a> + <dy, b2>, so the experts' outputs are never kept. The parts are one a column tile
    (scale) and one a row tile (biases); summing them later keeps every sum's order fixed.
    """
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    tile_m = pid // TILES_N
    tile_n = pid % TILES_N
    expert, first, end = locate_tile(counts_ptr, tile_m, num_rows, E, SEGMENTS, BLOCK_M)
    if expert > E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    row = tl.minimum(row, end - 1)
    token = caller_rows(order_ptr, row, HAS_ORDER)
    grad_scale = tl.zeros([BLOCK_M], tl.float32)
    scale_spot = grad_scale_parts_ptr + tile_n * num_rows + token
    if expert == E:
        tl.store(scale_spot, grad_scale, mask=in_range)
        return
    n0 = tile_n * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    w2 = expert_pointer(table_ptr + 2 * E, expert, grad_y_ptr)
    gy_rows = grad_y_ptr + token[:, None] * D
    u = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        gy = load_columns(gy_rows + k[None, :], k, D, BLOCK_K)
        spot = tl.multiple_of(w2 + k[:, None] * F + n[None, :], [1, ALIGN])
        u = dot(gy, load_tile(spot, k, D, BLOCK_K, n, F, BLOCK_N), u, UPCAST)
    # 0 in rows past the end, so that they add nothing to the sums over rows.
    scale = tl.where(in_range, 1.0, 0.0)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + token, mask=in_range, other=0.0)
    if tile_n == 0:
        b2 = expert_pointer(table_ptr + 3 * E, expert, grad_y_ptr)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            gy = load_columns(gy_rows + k[None, :], k, D, BLOCK_K).to(tl.float32)
            bias = tl.load(b2 + k, mask=k < D, other=0.0).to(tl.float32)
            grad_scale += tl.sum(gy * bias[None, :], 1)
            tl.store(grad_b2_parts_ptr + tile_m * D + k, tl.sum(gy * scale[:, None], 0), mask=k < D)
    for p in tl.static_range(PARTS):
        part = column_part(u, p, PARTS, BLOCK_M, BLOCK_N)
        n = n0 + p * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS)
        spot_RF = row.to(tl.int64)[:, None] * F + n[None, :]
        some = in_range[:, None] & (n < F)[None, :]
        h = tl.load(h_ptr + spot_RF, mask=some, other=0.0).to(tl.float32)
        a, slope = gelu_and_slope(h, TANH)
        a = a.to(scaled_a_ptr.dtype.element_ty).to(tl.float32)
        grad_scale += tl.sum(part * a, 1)
        scaled = (a * scale[:, None]).to(scaled_a_ptr.dtype.element_ty)
        tl.store(scaled_a_ptr + spot_RF, scaled, mask=some)
        gh = part * slope * scale[:, None]
        tl.store(grad_h_ptr + spot_RF, gh.to(grad_h_ptr.dtype.element_ty), mask=some)
        tl.store(grad_b1_parts_ptr + tile_m * F + n, tl.sum(gh, 0), mask=n < F)
    tl.store(scale_spot, grad_scale, mask=in_range)


@triton.jit(do_not_specialize=["num_rows"])
def up_grad_kernel(
    grad_h_ptr, order_ptr, counts_ptr, table_ptr, grad_x_ptr,
    gate_ids_ptr, grad_logits_ptr, gate_weight_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    G: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_IDS: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write dL/dx_TD = dh W1, plus routing's dlogits W_gate if G > 0, and 0 in rows not routed."""
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    expert, first, end = locate_tile(counts_ptr, pid // TILES_N, num_rows, E, SEGMENTS, BLOCK_M)
    if expert > E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    row = tl.minimum(row, end - 1)
    token = caller_rows(order_ptr, row, HAS_ORDER)
    n = (pid % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = grad_x_ptr + token[:, None] * D + n[None, :]
    some = in_range[:, None] & (n < D)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if expert == E:
        tl.store(out, acc.to(grad_x_ptr.dtype.element_ty), mask=some)
        return
    w1 = expert_pointer(table_ptr, expert, grad_h_ptr)
    gh_rows = grad_h_ptr + row.to(tl.int64)[:, None] * F
    for k0 in range(0, F, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        gh = load_columns(gh_rows + k[None, :], k, F, BLOCK_K)
        spot = tl.multiple_of(w1 + k[:, None] * D + n[None, :], [1, ALIGN])
        acc = dot(gh, load_tile(spot, k, F, BLOCK_K, n, D, BLOCK_N), acc, UPCAST)
    if G > 0:
        acc = add_gate_term(
            acc, token, in_range, n, gate_ids_ptr, grad_logits_ptr, gate_weight_ptr,
            D, G, E, E_PAD, CHUNK, HAS_IDS,
        )  # fmt: skip
    tl.store(out, acc.to(grad_x_ptr.dtype.element_ty), mask=some)


@triton.jit
def weight_grad_kernel(
    grad_h_ptr, x_ptr, scaled_a_ptr, grad_y_ptr, order_ptr, counts_ptr, grad_w1_ptr, grad_w2_ptr,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_ORDER: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write an expert's dW1_FD = sum over its rows of dh^T x, or dW2_DF = dy^T (scale a).

    Both are sums of products of an inner row, in expert order, and an outer row, in the caller's,
    so one launch does both: twice the programs leave less of the device idle at their end. Zeros
    for an expert without rows.
    """
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    expert = tl.program_id(1)
    is_w2 = tl.program_id(2) == 1
    inner_ptr, outer_ptr = grad_h_ptr, x_ptr
    if is_w2:
        inner_ptr, outer_ptr = scaled_a_ptr, grad_y_ptr
    f = (pid // TILES_N) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = (pid % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner, outer = inner_ptr + f[None, :], outer_ptr + d[None, :]
    first, count = segment_rows(counts_ptr, expert, E, SEGMENTS)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    whole = count // BLOCK_K * BLOCK_K
    for k0 in range(0, whole, BLOCK_K):
        row = first + k0 + tl.arange(0, BLOCK_K)
        p = load_columns(inner + row.to(tl.int64)[:, None] * F, f, F, BLOCK_M)
        token = caller_rows(order_ptr, row, HAS_ORDER)
        acc = dot(tl.trans(p), load_columns(outer + token[:, None] * D, d, D, BLOCK_N), acc, UPCAST)
    if whole < count:
        k = whole + tl.arange(0, BLOCK_K)
        row = first + tl.minimum(k, count - 1)
        some = (k < count)[:, None] & (f < F)[None, :]
        p = tl.load(inner + row.to(tl.int64)[:, None] * F, mask=some, other=0.0)
        token = caller_rows(order_ptr, row, HAS_ORDER)
        acc = dot(tl.trans(p), load_columns(outer + token[:, None] * D, d, D, BLOCK_N), acc, UPCAST)
    some = (f < F)[:, None] & (d < D)[None, :]
    grad = acc.to(grad_w1_ptr.dtype.element_ty)
    start = expert.to(tl.int64) * F * D
    if is_w2:
        spot = grad_w2_ptr + start + d[:, None] * F + f[None, :]
        tl.store(spot, tl.trans(grad), mask=tl.trans(some))
    else:
        tl.store(grad_w1_ptr + start + f[:, None] * D + d[None, :], grad, mask=some)


@triton.jit
def bias_grad_kernel(
    parts_b1_ptr, parts_b2_ptr, counts_ptr, grad_b1_ptr, grad_b2_ptr,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write an expert's bias gradients: the sums of its row tiles' parts, BLOCK_M rows a tile."""
    expert = tl.program_id(1)
    segment = tl.arange(0, SEGMENTS)
    count = tl.load(counts_ptr + segment, mask=segment < E, other=0)
    tiles = (count + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(segment < expert, tiles, 0), 0)
    end = first + tl.sum(tl.where(segment == expert, tiles, 0), 0)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_b1 = column < F
    is_b2 = (column >= F) & (column < F + D)
    total = tl.zeros([BLOCK], tl.float32)
    for tile0 in range(first, end, TILES):
        tile = tile0 + tl.arange(0, TILES)
        some = (tile < end)[:, None]
        b1 = tl.load(
            parts_b1_ptr + tile[:, None] * F + column[None, :],
            mask=some & is_b1[None, :],
            other=0.0,
        )
        b2 = tl.load(
            parts_b2_ptr + tile[:, None] * D + (column - F)[None, :],
            mask=some & is_b2[None, :],
            other=0.0,
        )
        total += tl.sum(b1 + b2, 0)
    out = total.to(grad_b1_ptr.dtype.element_ty)
    tl.store(grad_b1_ptr + expert * F + column, out, mask=is_b1)
    tl.store(grad_b2_ptr + expert * D + column - F, out, mask=is_b2)
