"""What part of a card's peak its products reach, by their shape: from recorded measurements.

T tokens, d hidden size, inner size 4 d. Small shapes leave multiprocessors idle, so one rate for
all models is wrong for most of them.
"""

import math

from ds_moe_mtl.planner.cards import CARDS

MEMORY_SHARE = 0.9
"""Part of a memory's published bandwidth that a pass over it reaches: our assumption."""

LINK_SHARE = 2 / 3
"""Part of a link's published bandwidth that a collective reaches: our assumption."""

FFN_STEPS = {
    384: {16_384: 0.602 * 0.65, 32_768: 0.867 * 0.82, 131_072: 2.630 * 0.93},
    768: {16_384: 1.063 * 0.88, 32_768: 2.003 * 0.93, 131_072: 7.471 * 0.96},
    1024: {16_384: 1.618 * 0.90, 32_768: 3.186 * 0.93, 131_072: 12.235 * 0.98},
}
"""ms of a dense FFN's forward and backward pass, by d and T, measured on an H100 SXM in bf16 under
a CUDA graph (kernels/README.md, "On a GPU": the eager time x the graph's share of it)."""


def beside_products(
    hidden: float, inner: float, element_bytes: int, gated: bool = False, biased: bool = True
) -> float:
    """Return the bytes a token that an FFN moves beside its products, forward and backward.

    GELU reads and writes a row of F, its derivative reads two and writes one; the gradients of the
    two biases read a row of F and a row of D. A gated FFN's activation reads two rows of F and
    writes one, its derivative reads three and writes two; its first bias is two rows of F long.
    """
    activation, first_bias = (8, 2) if gated else (5, 1)
    biases = first_bias * inner + hidden if biased else 0
    return element_bytes * (activation * inner + biases)


def product_share(hidden: int, tokens: float) -> float:
    """Return the part of the peak that products of [tokens, hidden] rows reach.

    It is the FFN's products over what a recorded step takes beside the memory traffic of GELU and
    biases. Between the recorded shapes it goes by straight lines in the logarithms; outside it is
    that of the nearest: below 16,384 tokens and above 1,024 wide nothing was measured.
    """
    sizes = sorted(FFN_STEPS)
    low, high, share = _between(sizes, hidden)
    first, last = (_share_at(size, tokens) for size in (low, high))
    return first + share * (last - first)


def _share_at(hidden: int, tokens: float) -> float:
    low, high, share = _between(sorted(FFN_STEPS[hidden]), tokens)
    first, last = (_recorded(hidden, count) for count in (low, high))
    return first + share * (last - first)


def _recorded(hidden: int, tokens: int) -> float:
    """Return the share of a recorded step: 3 passes of two products of 2 T d 4d each."""
    card = CARDS["h100-sxm"]
    moved = tokens * beside_products(hidden, 4 * hidden, 2)
    seconds = 1e-3 * FFN_STEPS[hidden][tokens] - moved / (MEMORY_SHARE * card.bandwidth)
    return 48 * tokens * hidden**2 / seconds / card.half


def _between(known: list[int], value: float) -> tuple[int, int, float]:
    """Return the two known values around one, and how far it is from first to second, by logs."""
    value = min(max(value, known[0]), known[-1])
    high = next(number for number in known if number >= value)
    low = max(number for number in known if number <= value)
    return low, high, math.log(value / low) / math.log(high / low) if high > low else 0.0
