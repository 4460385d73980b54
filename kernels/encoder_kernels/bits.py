"""Device code of dropout: which elements of a tile are kept (encoder_kernels.dropout says how)."""

import triton
import triton.language as tl

from encoder_kernels.dropout import ROUNDS

PHILOX_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def keep_tile(seed_ptr, row, first_quarter, cut, M: tl.constexpr, N: tl.constexpr):
    """Return which elements [M, N] are kept, for rows [M] (int32) and N columns from a quarter."""
    quarter = first_quarter + tl.arange(0, N // 4)
    nothing = tl.zeros([M, N // 4], tl.int32)
    c0 = row[:, None] + nothing
    c1 = quarter[None, :] + nothing
    a, b, c, d = tl.philox(tl.load(seed_ptr), c0, c1, nothing, nothing, PHILOX_ROUNDS)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (M, N))
    return words.to(tl.int32, bitcast=True) >= cut
