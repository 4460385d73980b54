"""Bytes that an optimizer's step moves, a weight: counted by passes over the code that runs."""

CACHE = 32 << 20
"""Bytes of gradients in fp32 that stay in a cache between two passes: above a CPU's piece (4 MiB),
below a GPU's (128 MiB)."""

ADAM = 24
"""Adam reads and writes the fp32 weight and both moments."""


def update_bytes(element: int, zero_stage: int, piece: int | None) -> float:
    """Return the bytes a weight. element: of a gradient and of the stored weight, 2 or 4.

    piece: weights that engine.zero_update takes at a time; None: DeepSpeed's own step.

    Stage 0 is torch's: norm 4, scale 8, Adam 24 and its gradient 4. In one pass whose pieces stay
    in a cache, the norm reads the gradient and so does the update, which writes the stored weight:
    24 + 3 elements. Pieces that do not stay go to memory as fp32 each time: norm e + 8, copy e + 4,
    scale 8, Adam 28, copy back e + 4 (58 in 16 bits). DeepSpeed 0.19.8's own step: largest and
    smallest 2 e, norm in float64 e + 16, join 2 e, cast e + 4 (none in fp32), scale 8, Adam 28,
    copy back e + 4 (74 in 16 bits).
    """
    if zero_stage == 0:
        return 4 + 8 + ADAM + 4
    if piece is None:
        cast = element + 4 if element < 4 else 0
        return 2 * element + element + 16 + 2 * element + cast + 8 + ADAM + 4 + element + 4
    if 4 * piece <= CACHE:
        return ADAM + 3 * element
    return element + 8 + element + 4 + 8 + ADAM + 4 + element + 4
