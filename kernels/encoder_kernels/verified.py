"""On which kinds of card each operator was checked and timed: elsewhere it runs if asked for."""

OPERATORS = ("short_attention", "residual_norm", "joint_projection")

# (operator, compute capability). Empty: none of them has run on a card yet.
_VERIFIED: frozenset[tuple[str, tuple[int, int]]] = frozenset()


def verified(name: str, capability: tuple[int, int]) -> bool:
    """Return whether an operator passed its tests, and was faster, on cards of this capability."""
    assert name in OPERATORS, name
    return (name, capability) in _VERIFIED
