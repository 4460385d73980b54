"""FLOPs a token of an encoder whose layers are experts, by counting matrix products.

A multiply-add counts as two. Attention scores, norms, activations and the router (a few thousand
products a step, not a token) are left out, as is the head.
"""

from typing import NamedTuple


class TokenFlops(NamedTuple):
    """Of one token: in a forward pass, and forward and backward together (three times that)."""

    forward: int

    @property
    def training(self) -> int:
        return 3 * self.forward


def token_flops(layers: int, weights: int, routed: int = 0, run_experts: int = 1) -> TokenFlops:
    """Return the FLOPs of one token; `routed` of the layers run `run_experts` experts each.

    weights: of a layer's linear maps, without biases. run_experts is the number of experts for
    mixed routes (softmax, average, and any learned route in training), 1 for one-hot routes that
    are executed sparsely.
    """
    if not 0 <= routed <= layers:
        raise ValueError(f"routed = {routed}; allowed: 0 to {layers}")
    return TokenFlops(2 * weights * (layers - routed + routed * run_experts))
