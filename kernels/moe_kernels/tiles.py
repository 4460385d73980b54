"""Device code shared by the Triton kernels: row tiles, products, activations, columns of gates.

Rows are listed expert by expert: segments 0..E-1 are the experts, segment E holds the rows that are
not routed (they are written as zeros, never computed).
"""

import triton
import triton.language as tl


@triton.jit
def locate_tile(
    counts_ptr, tile, num_rows, E: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Return (segment, first row, the segment's end row) of a row tile; segment > E: past the end.

    Every segment starts a tile of its own. E counts are read and summed by each program: that is
    cheaper than a launch that writes a tile-to-expert map, and needs no agreed tile size.
    """
    segment = tl.arange(0, SEGMENTS)
    count = tl.load(counts_ptr + segment, mask=segment < E, other=0)
    count = tl.where(segment == E, num_rows - tl.sum(count, 0), count)
    tiles = (count + BLOCK_M - 1) // BLOCK_M
    tile_end = tl.cumsum(tiles, 0)
    row_end = tl.cumsum(count, 0)
    here = tl.sum((tile_end <= tile).to(tl.int32), 0)
    chosen = segment == here
    first_tile = tl.sum(tl.where(chosen, tile_end - tiles, 0), 0)
    first_row = tl.sum(tl.where(chosen, row_end - count, 0), 0) + (tile - first_tile) * BLOCK_M
    return here, first_row, tl.sum(tl.where(chosen, row_end, 0), 0)


@triton.jit
def segment_rows(counts_ptr, expert, E: tl.constexpr, SEGMENTS: tl.constexpr):
    """Return (first row, number of rows) of an expert."""
    segment = tl.arange(0, SEGMENTS)
    count = tl.load(counts_ptr + segment, mask=segment < E, other=0)
    first = tl.sum(tl.where(segment < expert, count, 0), 0)
    return first, tl.sum(tl.where(segment == expert, count, 0), 0)


@triton.jit
def load_columns(spot, c, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a tile whose columns are c, 0 beyond C; without a mask where none can be beyond."""
    mask = None if C % BLOCK_C == 0 else (c < C)[None, :]
    return tl.load(spot, mask=mask, other=None if C % BLOCK_C == 0 else 0.0)


@triton.jit
def load_tile(
    spot, r, R: tl.constexpr, BLOCK_R: tl.constexpr, c, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Return a tile of rows r and columns c, 0 beyond R and C; masked only where that can be."""
    if R % BLOCK_R == 0:
        tile = load_columns(spot, c, C, BLOCK_C)
    else:
        tile = tl.load(spot, mask=(r < R)[:, None] & (c < C)[None, :], other=0.0)
    return tile


@triton.jit
def column_halves(acc, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def column_part(
    acc, p: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return part p of the 1, 2, 4 or 8 column parts of a tile: all of it at once needs registers
    for each number on the way to its activation.
    """
    part = acc
    if PARTS >= 2:
        left, right = column_halves(part, BLOCK_M, BLOCK_N)
        part = left if p < PARTS // 2 else right
    if PARTS >= 4:
        left, right = column_halves(part, BLOCK_M, BLOCK_N // 2)
        part = left if p % (PARTS // 2) < PARTS // 4 else right
    if PARTS == 8:
        left, right = column_halves(part, BLOCK_M, BLOCK_N // 4)
        part = left if p % 2 == 0 else right
    return part


@triton.jit
def expert_pointer(table_ptr, expert, like_ptr):
    """Return the address in an expert's entry of the pointer table, typed as like_ptr."""
    return tl.load(table_ptr + expert).to(tl.pointer_type(like_ptr.dtype.element_ty))


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """Return acc + a @ b in float32. UPCAST: in the interpreter, which has none of bfloat16."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def gate_dot(a, b, acc, NARROW: tl.constexpr):
    """Return acc + a @ b for gates: 16-bit as it is (exact products), else three TF32 products."""
    if NARROW:
        return tl.dot(a, b, acc)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32x3")


@triton.jit
def split_dot(a, b, acc, TERMS: tl.constexpr, UPCAST: tl.constexpr):
    """Return acc + a @ b for a float32 a: gradients of logits, against x or the gates' weights.

    TERMS 2: b is bfloat16, a goes in as two bfloat16 numbers that sum to 16 bits of it; 3: b is
    float16, whose 11 bits take two as well. 0: all in float32 (three TF32 products), for tests:
    those products want their operands turned over, which costs more than they do.
    """
    if TERMS == 0:
        acc = tl.dot(a, b.to(tl.float32), acc, input_precision="tf32x3")
    else:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        b_high = b.to(tl.bfloat16)
        acc = dot(high, b_high, acc, UPCAST)
        acc = dot(low, b_high, acc, UPCAST)
        if TERMS == 3:
            b_low = (b.to(tl.float32) - b_high.to(tl.float32)).to(tl.bfloat16)
            acc = dot(high, b_low, acc, UPCAST)
    return acc


@triton.jit
def value_and_slope(h, FUNCTION: tl.constexpr, EXACT: tl.constexpr):
    """Return (the function of float32 h, its derivative): "gelu" by erf, "gelu_tanh" or "silu".

    Not EXACT, for what is rounded to 16 bits: erf to 1.5e-7 by Abramowitz and Stegun 7.1.26, whose
    exponential is the derivative's as well.
    """
    if FUNCTION == "silu":
        cdf = tl.sigmoid(h)
        slope = cdf + h * cdf * (1.0 - cdf)
    elif FUNCTION == "gelu_tanh":
        z = 0.7978845608028654 * (h + 0.044715 * h * h * h)
        cdf = tl.sigmoid(2.0 * z)  # (1 + tanh z) / 2
        slope_z = 0.7978845608028654 * (1.0 + 0.134145 * h * h)
        slope = cdf + 2.0 * h * cdf * (1.0 - cdf) * slope_z
    elif EXACT:
        cdf = 0.5 * (1.0 + tl.erf(h * 0.7071067811865476))
        slope = cdf + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
    else:
        density = tl.exp(-0.5 * h * h)
        t = 1.0 / (1.0 + (0.3275911 * 0.7071067811865476) * tl.abs(h))
        tail = t * (-1.453152027 + t * 1.061405429)
        tail = t * (-0.284496736 + t * (1.421413741 + tail))
        tail = 0.5 * t * (0.254829592 + tail) * density
        cdf = tl.where(h >= 0, 1.0 - tail, tail)
        slope = cdf + h * 0.3989422804014327 * density
    return h * cdf, slope


@triton.jit
def gate_columns(chunk, G: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr):
    """Return (gate, expert, valid) of a chunk's columns: whole gates, E_PAD columns each."""
    column = tl.arange(0, CHUNK)
    gate = chunk * (CHUNK // E_PAD) + column // E_PAD
    expert = column % E_PAD
    return gate, expert, (gate < G) & (expert < E)
