"""Triton kernels of the update: the norm's parts, the decision about the step, Adam of a group.

A block is a row (gradient, first, place, count) of a table: `count` elements from `first` on of the
gradient whose address stands at `gradient` in a table of addresses, which belong to the weights
from `place` on of the group's partition. ALIGN: 16 where every block starts at multiples of so many
bytes, and in the update has a multiple of 8 elements: then 16 bytes are moved at once; else 1.
Every division and root is rounded correctly, and no product and sum are joined to one rounding
(launch.py switches that off): a GPU computes what the reference does, bit for bit. G groups.
"""

import triton
import triton.language as tl

# Columns of the scalars of a group: float64 in `scalars`, float32 in `rows`.
LR, BETA1, BETA2, EPS, DECAY = (tl.constexpr(column) for column in range(5))
SCALARS = tl.constexpr(5)
FACTOR, SHRINK, WEIGHT, KEPT, ADDED, ROOT, STEP, ROW_EPS = (tl.constexpr(c) for c in range(8))
ROW = tl.constexpr(8)
BLOCK_ROW = tl.constexpr(4)


@triton.jit
def block_of(blocks_ptr, block):
    """Return (gradient, first, place, count) of a block."""
    row = blocks_ptr + block * BLOCK_ROW
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
def gradient_at(addresses_ptr, gradient, first, i, TYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Return where elements first + i of a gradient lie."""
    start = tl.load(addresses_ptr + gradient).to(tl.pointer_type(TYPE))
    return tl.multiple_of(start + first + i, ALIGN)


@triton.jit
def store_rounded(spot, values, inside, BY_HAND: tl.constexpr):
    """Store float32 values in the memory's type, to nearest, ties to even.

    BY_HAND: in bfloat16 by whole numbers, for the interpreter, whose cast truncates.
    """
    if BY_HAND:
        bits = values.to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        rounded = (bits & -65536).to(tl.float32, bitcast=True)
        tl.store(spot, rounded.to(tl.bfloat16), mask=inside)
    else:
        tl.store(spot, values.to(spot.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_blocks"])
def norm_kernel(
    addresses_ptr, blocks_ptr, partial_ptr, num_blocks,
    TYPE: tl.constexpr, ALIGN: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sum of the squares of this program's blocks, float32."""
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for block in range(program, num_blocks, PROGRAMS):
        gradient, first, _, count = block_of(blocks_ptr, block)
        spot = gradient_at(addresses_ptr, gradient, first, i, TYPE, ALIGN)
        if count == BLOCK:
            g = tl.load(spot).to(tl.float32)
        else:
            g = tl.load(spot, mask=i < count, other=0.0).to(tl.float32)
        sums += g * g
    tl.store(partial_ptr + program, tl.sum(sums, 0))


@triton.jit
def power(base, step):
    """Return base ** step in float64, for whole steps below 2 ** 24."""
    left = step.to(tl.int32)
    result = base * 0 + 1
    for _ in range(24):
        result = tl.where(left % 2 == 1, result * base, result)
        base = base * base
        left = left // 2
    return result


@triton.jit(do_not_specialize=["number"])
def decide_kernel(
    partial_ptr, number, scalars_ptr, steps_ptr, rows_ptr, norm_ptr, finite_ptr,
    G: tl.constexpr, G_PAD: tl.constexpr, P: tl.constexpr, CLIPS: tl.constexpr,
):  # fmt: skip
    """Write the norm, whether it is finite, and what each group's update is computed with.

    scalars: scale and bound, then SCALARS of each group. Where the norm is finite the groups'
    steps are counted up. One program: the sum of the parts has one order.
    """
    p = tl.arange(0, P)
    parts = tl.load(partial_ptr + p, mask=p < number, other=0.0).to(tl.float64)
    norm = tl.sqrt(tl.sum(parts, 0)).to(tl.float32)
    scale = tl.load(scalars_ptr).to(tl.float32)
    bound = tl.load(scalars_ptr + 1).to(tl.float32)
    finite = (norm == norm) & (norm < float("inf"))
    norm = tl.where(finite, tl.div_rn(norm, scale), float("inf"))
    tl.store(norm_ptr, norm)
    tl.store(finite_ptr, finite.to(tl.int8))
    clip = norm * 0 + 1
    if CLIPS:
        clip = tl.maximum(tl.div_rn(norm + 1e-6, bound), 1.0)
    factor = tl.div_rn(norm * 0 + 1, clip * scale)

    g = tl.arange(0, G_PAD)
    real = g < G
    of_group = scalars_ptr + 2 + g * SCALARS
    lr = tl.load(of_group + LR, mask=real, other=0.0)
    beta1 = tl.load(of_group + BETA1, mask=real, other=0.0)
    beta2 = tl.load(of_group + BETA2, mask=real, other=0.0)
    decay = tl.load(of_group + DECAY, mask=real, other=0.0)
    step_ptr = tl.load(steps_ptr + g, mask=real, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(step_ptr, mask=real, other=0.0) + finite.to(tl.float32)
    tl.store(step_ptr, step, mask=real)
    step = tl.maximum(step, 1.0)
    row = rows_ptr + g * ROW
    tl.store(row + FACTOR, tl.zeros([G_PAD], tl.float32) + factor, mask=real)
    tl.store(row + SHRINK, decay.to(tl.float32), mask=real)
    tl.store(row + WEIGHT, (1 - beta1).to(tl.float32), mask=real)
    tl.store(row + KEPT, beta2.to(tl.float32), mask=real)
    tl.store(row + ADDED, (1 - beta2).to(tl.float32), mask=real)
    root = tl.sqrt(1 - power(beta2, step))
    tl.store(row + ROOT, root.to(tl.float32), mask=real)
    tl.store(row + STEP, -(lr / (1 - power(beta1, step))).to(tl.float32), mask=real)
    eps = tl.load(of_group + EPS, mask=real, other=0.0)
    tl.store(row + ROW_EPS, eps.to(tl.float32), mask=real)


@triton.jit
def update_kernel(
    addresses_ptr, blocks_ptr, row_ptr, finite_ptr,
    weights_ptr, average_ptr, square_ptr, stored_ptr,
    TYPE: tl.constexpr, DECAYS: tl.constexpr, DECOUPLED: tl.constexpr, BY_HAND: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adam of one block: nothing is written where a gradient of the step is not finite."""
    if tl.load(finite_ptr) == 0:
        return
    gradient, first, place, count = block_of(blocks_ptr, tl.program_id(0))
    i = tl.arange(0, BLOCK)
    inside = i < count
    if ALIGN > 1:
        inside = tl.max_constancy(inside, 8)
    spot = gradient_at(addresses_ptr, gradient, first, i, TYPE, ALIGN)
    g = tl.load(spot, mask=inside, other=0.0).to(tl.float32) * tl.load(row_ptr + FACTOR)
    weights = tl.multiple_of(weights_ptr + place + i, ALIGN)
    average = tl.multiple_of(average_ptr + place + i, ALIGN)
    square = tl.multiple_of(square_ptr + place + i, ALIGN)
    new = tl.load(weights, mask=inside, other=0.0)
    m = tl.load(average, mask=inside, other=0.0)
    v = tl.load(square, mask=inside, other=0.0)
    if DECAYS:
        shrink = tl.load(row_ptr + SHRINK)
        if DECOUPLED:
            new = new * shrink
        else:
            g = g + new * shrink
    weight = tl.load(row_ptr + WEIGHT)
    near = weight < 0.5  # as torch's lerp: from the nearer end
    m = tl.where(near, m, g) + (g - m) * tl.where(near, weight, weight - 1)
    v = v * tl.load(row_ptr + KEPT) + g * tl.load(row_ptr + ADDED) * g
    denominator = tl.div_rn(tl.sqrt_rn(v), tl.load(row_ptr + ROOT)) + tl.load(row_ptr + ROW_EPS)
    new = new + tl.div_rn(m * tl.load(row_ptr + STEP), denominator)
    tl.store(weights, new, mask=inside)
    tl.store(average, m, mask=inside)
    tl.store(square, v, mask=inside)
    store_rounded(tl.multiple_of(stored_ptr + place + i, ALIGN), new, inside, BY_HAND)
