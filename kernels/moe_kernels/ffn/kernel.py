"""Triton kernels of the experts' FFNs: grouped products over rows listed expert by expert.

R rows in expert order, T rows as the caller holds them (row r of the one is row order[r] of the
other), D hidden size, F inner size, H = HALVES F rows of W1, E experts. HALVES is 2 in a gated FFN:
its h has the activated half in the first F columns, the linear half in the others. Weights are read
through a table of addresses, so every expert keeps its own parameters. Nothing here waits for the
host, adds atomically or reads a row that was not written.
"""

import triton
import triton.language as tl

from moe_kernels.routing.kernel import add_gate_term
from moe_kernels.tiles import (
    column_halves,
    column_part,
    dot,
    expert_pointer,
    load_columns,
    load_tile,
    locate_tile,
    segment_rows,
    value_and_slope,
)

# Equal columns of the second factor of a product that sums rows: the least that Triton takes.
ONES = tl.constexpr(16)


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
    HALVES: tl.constexpr, FUNCTION: tl.constexpr, HAS_B1: tl.constexpr,
    HAS_ORDER: tl.constexpr, KEEP_H: tl.constexpr, EXACT: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write h_RH = x W1^T + b1 (if it is kept for the backward pass) and a_RF = act(h).

    Gated: a = act(h_a) h_b, and a tile has BLOCK_N / 2 columns of each half, which one product
    makes together.
    """
    pid = tl.program_id(0)
    BLOCK_F: tl.constexpr = BLOCK_N // HALVES
    TILES_F: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    expert, first, end = locate_tile(counts_ptr, pid // TILES_F, num_rows, E, SEGMENTS, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    token = caller_rows(order_ptr, tl.minimum(row, end - 1), HAS_ORDER)
    f0 = (pid % TILES_F) * BLOCK_F
    n = f0 + tl.arange(0, BLOCK_N)
    f = n
    if HALVES == 2:
        column = tl.arange(0, BLOCK_N)
        f = f0 + column % BLOCK_F
        n = f + column // BLOCK_F * F
    w1 = expert_pointer(table_ptr, expert, x_ptr)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = load_columns(x_ptr + token[:, None] * D + k[None, :], k, D, BLOCK_K)
        spot = tl.multiple_of(w1 + n[None, :] * D + k[:, None], [ALIGN, 1])
        acc = dot(x, load_tile(spot, k, D, BLOCK_K, f, F, BLOCK_F), acc, UPCAST)
    b1_ptr = expert_pointer(table_ptr + E, expert, x_ptr)
    activated = acc
    if HALVES == 2:
        activated, linear = column_halves(acc, BLOCK_M, BLOCK_N)
    for p in tl.static_range(PARTS):
        f = f0 + p * (BLOCK_F // PARTS) + tl.arange(0, BLOCK_F // PARTS)
        some = in_range[:, None] & (f < F)[None, :]
        out = row.to(tl.int64)[:, None] * F + f[None, :]
        h_out = row.to(tl.int64)[:, None] * (HALVES * F) + f[None, :]
        part = column_part(activated, p, PARTS, BLOCK_M, BLOCK_F)
        h = plus_bias(part, b1_ptr, f, F, HAS_B1, ALIGN).to(h_ptr.dtype.element_ty)
        if KEEP_H:
            tl.store(h_ptr + h_out, h, mask=some)
        a, _ = value_and_slope(h.to(tl.float32), FUNCTION, EXACT)
        if HALVES == 2:
            part = column_part(linear, p, PARTS, BLOCK_M, BLOCK_F)
            h = plus_bias(part, b1_ptr + F, f, F, HAS_B1, ALIGN).to(h_ptr.dtype.element_ty)
            if KEEP_H:
                tl.store(h_ptr + h_out + F, h, mask=some)
            a = a * h.to(tl.float32)
        tl.store(a_ptr + out, a.to(a_ptr.dtype.element_ty), mask=some)


@triton.jit
def plus_bias(acc, bias_ptr, n, N: tl.constexpr, HAS_BIAS: tl.constexpr, ALIGN: tl.constexpr):
    """Return acc with its columns' biases added, where there are any."""
    if HAS_BIAS:
        bias = tl.load(tl.multiple_of(bias_ptr + n, ALIGN), mask=n < N, other=0.0)
        acc = acc + bias.to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["num_rows"])
def down_kernel(
    a_ptr, order_ptr, counts_ptr, table_ptr, scale_ptr, y_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_B2: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_SCALE: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr,
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
    b2_ptr = expert_pointer(table_ptr + 3 * E, expert, a_ptr)
    acc = plus_bias(acc, b2_ptr, n, D, HAS_B2, ALIGN)
    if HAS_SCALE:
        acc = acc * tl.load(scale_ptr + token, mask=in_range, other=0.0)[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=["num_rows"])
def sort_rows_kernel(
    x_ptr, grad_y_ptr, order_ptr, counts_ptr, table_ptr, scale_ptr, sorted_x_ptr, scaled_dy_ptr,
    dots_ptr, num_rows,
    D: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HAS_B2: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_DOTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write x and scale dy in expert order, and with HAS_DOTS <scale dy, b2> to each token, 0
    without b2.

    The three products that read them then move whole rows without looking up where they are.
    """
    expert, first, end = locate_tile(counts_ptr, tl.program_id(0), num_rows, E, SEGMENTS, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    token = caller_rows(order_ptr, tl.minimum(row, end - 1), True)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + token)
    b2 = expert_pointer(table_ptr + 3 * E, expert, grad_y_ptr)
    dots = tl.zeros([BLOCK_M], tl.float32)
    for n0 in range(0, D, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        spot_TD = token[:, None] * D + n[None, :]
        spot_RD = row.to(tl.int64)[:, None] * D + n[None, :]
        some = in_range[:, None] & (n < D)[None, :]
        tl.store(sorted_x_ptr + spot_RD, load_columns(x_ptr + spot_TD, n, D, BLOCK_N), mask=some)
        dy = load_columns(grad_y_ptr + spot_TD, n, D, BLOCK_N)
        if HAS_SCALE:
            dy = (dy.to(tl.float32) * scale[:, None]).to(dy.dtype)
        tl.store(scaled_dy_ptr + spot_RD, dy, mask=some)
        if HAS_DOTS and HAS_B2:
            bias = tl.load(b2 + n, mask=n < D, other=0.0).to(tl.float32)
            dots += tl.sum(dy.to(tl.float32) * bias[None, :], 1)
    if HAS_DOTS:
        tl.store(dots_ptr + token, dots, mask=in_range)


@triton.jit(do_not_specialize=["num_rows"])
def down_grad_kernel(
    scaled_dy_ptr, order_ptr, counts_ptr, table_ptr, h_ptr, grad_h_ptr, dots_ptr, num_rows,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HALVES: tl.constexpr, FUNCTION: tl.constexpr, HAS_DOTS: tl.constexpr, EXACT: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write dL/dh = u act'(h) in expert order, u = scale dy W2; it may take the place of h.

    Gated: dL/dh_a = u h_b act'(h_a) and dL/dh_b = u act(h_a).

    With HAS_DOTS also <u, a> to each token, a part each column tile, in the rows after the first
    of dots: with <scale dy, b2> there they sum to scale dL/dscale, so that the experts' outputs
    need not be kept, and summing them later keeps the order of the sum fixed.
    """
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    tile_n = pid % TILES_N
    expert, first, end = locate_tile(counts_ptr, pid // TILES_N, num_rows, E, SEGMENTS, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    in_range = row < end
    row = tl.minimum(row, end - 1)
    n0 = tile_n * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    w2 = expert_pointer(table_ptr + 2 * E, expert, scaled_dy_ptr)
    dy_rows = scaled_dy_ptr + row.to(tl.int64)[:, None] * D
    u = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        dy = load_columns(dy_rows + k[None, :], k, D, BLOCK_K)
        spot = tl.multiple_of(w2 + k[:, None] * F + n[None, :], [1, ALIGN])
        u = dot(dy, load_tile(spot, k, D, BLOCK_K, n, F, BLOCK_N), u, UPCAST)
    dots = tl.zeros([BLOCK_M], tl.float32)
    for p in tl.static_range(PARTS):
        part = column_part(u, p, PARTS, BLOCK_M, BLOCK_N)
        n = n0 + p * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS)
        spot_RH = row.to(tl.int64)[:, None] * (HALVES * F) + n[None, :]
        some = in_range[:, None] & (n < F)[None, :]
        h = tl.load(h_ptr + spot_RH, mask=some, other=0.0).to(tl.float32)
        a, slope = value_and_slope(h, FUNCTION, EXACT)
        if HALVES == 2:
            linear = tl.load(h_ptr + spot_RH + F, mask=some, other=0.0).to(tl.float32)
            grad_linear = (part * a).to(grad_h_ptr.dtype.element_ty)
            tl.store(grad_h_ptr + spot_RH + F, grad_linear, mask=some)
            part = part * linear
        if HAS_DOTS:
            dots += tl.sum(part * a, 1)
        tl.store(grad_h_ptr + spot_RH, (part * slope).to(grad_h_ptr.dtype.element_ty), mask=some)
    if HAS_DOTS:
        token = caller_rows(order_ptr, row, True)
        tl.store(dots_ptr + (1 + tile_n) * num_rows + token, dots, mask=in_range)


@triton.jit(do_not_specialize=["num_rows"])
def up_grad_kernel(
    grad_h_ptr, order_ptr, counts_ptr, table_ptr, grad_x_ptr,
    gate_ids_ptr, grad_logits_ptr, gate_weight_ptr, num_rows,
    D: tl.constexpr, H: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    G: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr, TERMS: tl.constexpr,
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
    gh_rows = grad_h_ptr + row.to(tl.int64)[:, None] * H
    for k0 in range(0, H, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        gh = load_columns(gh_rows + k[None, :], k, H, BLOCK_K)
        spot = tl.multiple_of(w1 + k[:, None] * D + n[None, :], [1, ALIGN])
        acc = dot(gh, load_tile(spot, k, H, BLOCK_K, n, D, BLOCK_N), acc, UPCAST)
    if G > 0:
        acc = add_gate_term(
            acc, token, in_range, n, gate_ids_ptr, grad_logits_ptr, gate_weight_ptr,
            D, G, E, E_PAD, CHUNK, HAS_IDS, TERMS, UPCAST,
        )  # fmt: skip
    tl.store(out, acc.to(grad_x_ptr.dtype.element_ty), mask=some)


@triton.jit
def weight_grad_kernel(
    grad_h_ptr, x_ptr, a_ptr, dy_ptr, counts_ptr,
    grad_w1_ptr, grad_b1_ptr, grad_w2_ptr, grad_b2_ptr,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, SEGMENTS: tl.constexpr,
    HALVES: tl.constexpr, HAS_B1: tl.constexpr, HAS_B2: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write an expert's dW1_HD = dh^T x and db1, or dW2_DF = dy^T a and db2; all in expert order.

    All are sums over the expert's rows of an inner row times an outer row, so one launch does both:
    twice the programs leave less of the device idle at their end. Programs along axis 2 take the
    halves of dW1, then dW2. A bias's gradient is the sum of its factor's rows, for which the first
    tile across has a product with ones. Zeros for an expert without rows.
    """
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    expert = tl.program_id(1)
    half = tl.program_id(2)
    is_w2 = half == HALVES
    inner_ptr, outer_ptr = grad_h_ptr, x_ptr
    if HALVES == 2:
        inner_ptr += half * F
    if is_w2:
        inner_ptr, outer_ptr = a_ptr, dy_ptr
    tile_f, tile_d = pid // TILES_N, pid % TILES_N
    f = tile_f * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tile_d * BLOCK_N + tl.arange(0, BLOCK_N)
    first, count = segment_rows(counts_ptr, expert, E, SEGMENTS)
    stride = F
    if HALVES == 2:
        stride = tl.where(is_w2, F, 2 * F)
    inner = inner_ptr + first.to(tl.int64) * stride
    outer = outer_ptr + first.to(tl.int64) * D
    at_w1 = expert * HALVES
    if HALVES == 2:
        at_w1 += half
    if is_w2 & (tile_f == 0) & HAS_B2:
        acc, sums = sum_products(
            inner, outer, f, d, count, F, D, F, 2, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K
        )
        spot = grad_b2_ptr + expert * D + d
        tl.store(spot, sums.to(grad_b2_ptr.dtype.element_ty), mask=d < D)
    elif (is_w2 == 0) & (tile_d == 0) & HAS_B1:
        acc, sums = sum_products(
            inner, outer, f, d, count, HALVES * F, D, F, 1, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K
        )
        spot = grad_b1_ptr + at_w1 * F + f
        tl.store(spot, sums.to(grad_b1_ptr.dtype.element_ty), mask=f < F)
    else:
        acc, _ = sum_products(
            inner, outer, f, d, count, stride, D, F, 0, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K
        )
    some = (f < F)[:, None] & (d < D)[None, :]
    grad = acc.to(grad_w1_ptr.dtype.element_ty)
    start = at_w1.to(tl.int64) * F * D
    if is_w2:
        spot_w2 = grad_w2_ptr + expert.to(tl.int64) * F * D + d[:, None] * F + f[None, :]
        tl.store(spot_w2, tl.trans(grad), mask=tl.trans(some))
    else:
        tl.store(grad_w1_ptr + start + f[:, None] * D + d[None, :], grad, mask=some)


@triton.jit
def sum_products(
    inner, outer, f, d, count, stride,
    D: tl.constexpr, F: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return (sums over rows of inner_f outer_d, and of inner_f (SUM 1) or of outer_d (2)).

    stride: from one row of inner to the next; f stays below F, d below D.
    """
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sums = tl.zeros([BLOCK_N if SUM == 2 else BLOCK_M, ONES], tl.float32)
    ones = tl.full([BLOCK_K, ONES], 1.0, tl.float32).to(inner.dtype.element_ty)
    inner_spot = inner + k.to(tl.int64)[:, None] * stride + f[None, :]
    outer_spot = outer + k.to(tl.int64)[:, None] * D + d[None, :]
    whole = count // BLOCK_K * BLOCK_K
    for _ in range(0, whole, BLOCK_K):
        p = load_columns(inner_spot, f, F, BLOCK_M)
        q = load_columns(outer_spot, d, D, BLOCK_N)
        acc = dot(tl.trans(p), q, acc, UPCAST)
        if SUM == 1:
            sums = dot(tl.trans(p), ones, sums, UPCAST)
        if SUM == 2:
            sums = dot(tl.trans(q), ones, sums, UPCAST)
        inner_spot += BLOCK_K * stride
        outer_spot += BLOCK_K * D
    if whole < count:
        left = (k < count - whole)[:, None]
        p = tl.load(inner_spot, mask=left & (f < F)[None, :], other=0.0)
        q = tl.load(outer_spot, mask=left & (d < D)[None, :], other=0.0)
        acc = dot(tl.trans(p), q, acc, UPCAST)
        if SUM == 1:
            sums = dot(tl.trans(p), ones, sums, UPCAST)
        if SUM == 2:
            sums = dot(tl.trans(q), ones, sums, UPCAST)
    return acc, tl.sum(sums, 1) * (1.0 / ONES)
