"""Triton kernels of the experts' FFNs: grouped products over rows listed expert by expert.

R rows in expert order, T rows as the caller holds them (row r of the one is row order[r] of the
other), D hidden size, F inner size, E experts. Weights are read through a table of addresses, so
every expert keeps its own parameters. Nothing here waits for the host, adds atomically or reads a
row that was not written.
"""

import triton
import triton.language as tl

from moe_kernels.routing.kernel import add_gate_term
from moe_kernels.tiles import dot, expert_pointer, gelu_and_slope, locate_tile, segment_rows


@triton.jit
def caller_rows(order_ptr, row, in_range, HAS_ORDER: tl.constexpr):
    if HAS_ORDER:
        return tl.load(order_ptr + row, mask=in_range, other=0).to(tl.int64)
    return row.to(tl.int64)


@triton.jit
def column_halves(acc, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the left and the right half of a tile: GELU on a whole one runs out of registers."""
    return tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit(do_not_specialize=["num_rows"])
def up_kernel(
    x_ptr, order_ptr, counts_ptr, table_ptr, h_ptr, a_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_ORDER: tl.constexpr, KEEP_H: tl.constexpr, TANH: tl.constexpr, ALIGN: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write h_RF = x W1^T + b1 (if it is kept for the backward pass) and a_RF = GELU(h)."""
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    expert, first, end = locate_tile(counts_ptr, pid // TILES_N, num_rows, E, SEGMENTS, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    token = caller_rows(order_ptr, row, in_range, HAS_ORDER)
    n = (pid % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    w1 = expert_pointer(table_ptr, expert, x_ptr)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + token[:, None] * D + k[None, :],
            mask=in_range[:, None] & (k < D)[None, :],
            other=0.0,
        )
        spot = tl.multiple_of(w1 + n[None, :] * D + k[:, None], [ALIGN, 1])
        w = tl.load(spot, mask=(n < F)[None, :] & (k < D)[:, None], other=0.0)
        acc = dot(x, w, acc, UPCAST)
    b1_ptr = expert_pointer(table_ptr + E, expert, x_ptr)
    left, right = column_halves(acc, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        part = left if half == 0 else right
        n = (pid % TILES_N) * BLOCK_N + half * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
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
    token = caller_rows(order_ptr, row, in_range, HAS_ORDER)
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
        a = tl.load(a_rows + k[None, :], mask=in_range[:, None] & (k < F)[None, :], other=0.0)
        spot = tl.multiple_of(w2 + n[None, :] * F + k[:, None], [ALIGN, 1])
        w = tl.load(spot, mask=(n < D)[None, :] & (k < F)[:, None], other=0.0)
        acc = dot(a, w, acc, UPCAST)
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
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
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
    token = caller_rows(order_ptr, row, in_range, HAS_ORDER)
    grad_scale = tl.zeros([BLOCK_M], tl.float32)
    scale_spot = grad_scale_parts_ptr + tile_n * num_rows + token
    if expert == E:
        tl.store(scale_spot, grad_scale, mask=in_range)
        return
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    w2 = expert_pointer(table_ptr + 2 * E, expert, grad_y_ptr)
    gy_rows = grad_y_ptr + token[:, None] * D
    u = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        gy = tl.load(gy_rows + k[None, :], mask=in_range[:, None] & (k < D)[None, :], other=0.0)
        spot = tl.multiple_of(w2 + k[:, None] * F + n[None, :], [1, ALIGN])
        w = tl.load(spot, mask=(k < D)[:, None] & (n < F)[None, :], other=0.0)
        u = dot(gy, w, u, UPCAST)
    scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + token, mask=in_range, other=0.0)
    if tile_n == 0:
        b2 = expert_pointer(table_ptr + 3 * E, expert, grad_y_ptr)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            gy = tl.load(gy_rows + k[None, :], mask=in_range[:, None] & (k < D)[None, :], other=0.0)
            gy = gy.to(tl.float32)
            bias = tl.load(b2 + k, mask=k < D, other=0.0).to(tl.float32)
            grad_scale += tl.sum(gy * bias[None, :], 1)
            tl.store(grad_b2_parts_ptr + tile_m * D + k, tl.sum(gy * scale[:, None], 0), mask=k < D)
    left, right = column_halves(u, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        part = left if half == 0 else right
        n = tile_n * BLOCK_N + half * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
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
    token = caller_rows(order_ptr, row, in_range, HAS_ORDER)
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
        gh = tl.load(gh_rows + k[None, :], mask=in_range[:, None] & (k < F)[None, :], other=0.0)
        spot = tl.multiple_of(w1 + k[:, None] * D + n[None, :], [1, ALIGN])
        w = tl.load(spot, mask=(k < F)[:, None] & (n < D)[None, :], other=0.0)
        acc = dot(gh, w, acc, UPCAST)
    if G > 0:
        acc = add_gate_term(
            acc, token, in_range, n, gate_ids_ptr, grad_logits_ptr, gate_weight_ptr,
            D, G, E, E_PAD, CHUNK, HAS_IDS,
        )  # fmt: skip
    tl.store(out, acc.to(grad_x_ptr.dtype.element_ty), mask=some)


@triton.jit
def weight_grad_kernel(
    p_ptr, q_ptr, order_ptr, counts_ptr, grad_ptr,
    P: tl.constexpr, Q: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    GATHER_P: tl.constexpr, GATHER_Q: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write an expert's grad_PQ = sum over its rows of p_row q_row^T; zeros if it has none.

    GATHER_P, GATHER_Q: that factor lies in the caller's order. dW2 = dy^T (scale a), dW1 = dh^T x.
    """
    pid = tl.program_id(0)
    TILES_Q: tl.constexpr = (Q + BLOCK_N - 1) // BLOCK_N
    i = (pid // TILES_Q) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = (pid % TILES_Q) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.program_id(1)
    first, count = segment_rows(counts_ptr, expert, E, SEGMENTS)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, count, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        in_range = k < count
        p_row = caller_rows(order_ptr, first + k, in_range, GATHER_P)
        q_row = caller_rows(order_ptr, first + k, in_range, GATHER_Q)
        p = tl.load(
            p_ptr + p_row[:, None] * P + i[None, :],
            mask=in_range[:, None] & (i < P)[None, :],
            other=0.0,
        )
        q = tl.load(
            q_ptr + q_row[:, None] * Q + j[None, :],
            mask=in_range[:, None] & (j < Q)[None, :],
            other=0.0,
        )
        acc = dot(tl.trans(p), q, acc, UPCAST)
    out = grad_ptr + expert.to(tl.int64) * P * Q + i[:, None] * Q + j[None, :]
    tl.store(out, acc.to(grad_ptr.dtype.element_ty), mask=(i < P)[:, None] & (j < Q)[None, :])


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
