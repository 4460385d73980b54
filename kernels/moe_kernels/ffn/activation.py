"""The activations of the experts' FFNs, plain and gated.

A plain FFN is y = W2 act(W1 x + b1) + b2. A gated one has 2 F rows in W1 and b1: the first F give
what is activated, the others what that is multiplied by, y = W2 (act(h_a) h_b) + b2. Source of the
gated ones: Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202).

F inner size (columns of W2), H = F or, gated, 2 F.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """function: "gelu" (exact), "gelu_tanh" or "silu"; gated: it is the half of a product."""

    function: str
    gated: bool

    @property
    def halves(self) -> int:
        """How many times F rows W1 has."""
        return 2 if self.gated else 1


ACTIVATIONS = {
    "gelu": Activation("gelu", False),
    "gelu_tanh": Activation("gelu_tanh", False),
    "geglu": Activation("gelu", True),
    "geglu_tanh": Activation("gelu_tanh", True),
    "swiglu": Activation("silu", True),
}


def activate(h: Tensor, activation: str) -> Tensor:
    """Return what stands between an FFN's two layers [..., F], from h [..., H], W1's output."""
    function, gated = ACTIVATIONS[activation]
    if not gated:
        return apply_function(h, function)
    activated, linear = h.chunk(2, dim=-1)
    return apply_function(activated, function) * linear


def apply_function(h: Tensor, function: str) -> Tensor:
    """Return an Activation's function of h."""
    if function == "silu":
        return F.silu(h)
    return F.gelu(h, approximate="tanh" if function == "gelu_tanh" else "none")
