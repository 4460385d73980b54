"""What a run changes about its sparse layers, as far as weights, FLOPs and memory depend on it."""

from typing import NamedTuple

from ds_moe_mtl.planner.shape import Shape


class Levers(NamedTuple):
    """The sparse layers of an encoder.

    layers: how many have experts; None: all. shared: neurons of their FFN that every token passes.
    merged: gates whose FFN is merged in one call (a micro-batch's tasks), 0 where tokens are
    routed; call_tokens: the tokens of such a call.
    """

    layers: int | None = None
    shared: int = 0
    merged: float = 0.0
    call_tokens: float = 1.0

    def sparse(self, shape: Shape) -> int:
        """Return how many layers have experts."""
        return shape.layers if self.layers is None else self.layers


NO_LEVERS = Levers()
