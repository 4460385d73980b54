"""Which layers of an encoder have experts; the others keep their dense FFN."""

from collections.abc import Sequence

NAMED_LAYERS = ("all", "last_half", "every_other")
"""last_half: from layer depth // 2 on. every_other: layers 1, 3, 5, ... counted from 0, so that the
last layer of an even depth has experts, as in GShard (Lepikhin et al., 2006.16668)."""


def sparse_layers(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the numbers, from 0, of the layers with experts in an encoder of that depth, sorted.

    layers: one of NAMED_LAYERS, or the numbers themselves. Raises ValueError for another name, and
    where there is no such layer or none at all.
    """
    if layers == "all":
        return tuple(range(depth))
    if layers == "last_half":
        return tuple(range(depth // 2, depth))
    if isinstance(layers, str):
        if layers != "every_other":
            raise ValueError(
                f"moe.layers = {layers!r}; allowed: {', '.join(NAMED_LAYERS)}, or a list of numbers"
            )
        layers = range(1, depth, 2)
        if not layers:
            raise ValueError(f"moe.layers = every_other: none of {depth} layers; allowed: all")
    wrong = [number for number in layers if not 0 <= number < depth]
    if wrong or not layers:
        found = wrong[0] if wrong else "an empty list"
        raise ValueError(
            f"moe.layers: {found} with an encoder of {depth} layers; allowed: numbers from 0 to "
            f"{depth - 1}"
        )
    return tuple(sorted(set(layers)))
