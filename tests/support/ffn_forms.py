"""The forms of an FFN, and each by its formula in elementary functions."""

import math

import torch

# Activation, with biases or not.
FORMS = [
    ("gelu", True),
    ("gelu", False),
    ("geglu", True),
    ("geglu", False),
    ("geglu_tanh", False),
    ("swiglu", True),
    ("swiglu", False),
]

_FUNCTIONS = {
    "gelu": lambda h: h * (1 + torch.erf(h / math.sqrt(2))) / 2,
    "gelu_tanh": lambda h: h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2,
    "silu": lambda h: h / (1 + torch.exp(-h)),
}
_GATED = {"geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


def ffn_formula(x, w1, b1, w2, b2, activation: str) -> torch.Tensor:
    """Return W2 f(W1 x + b1) + b2, or W2 (f(W1a x + b1a) * (W1b x + b1b)) + b2; b1, b2 may be None.

    x [..., D]; w1 [F, D] or, of a gated activation, [2 F, D], the activated half first.
    """
    gated = activation in _GATED
    function = _FUNCTIONS[_GATED.get(activation, activation)]
    inner = w2.shape[1]
    h = [x @ rows.t() for rows in w1.split(inner)]
    if b1 is not None:
        h = [part + bias for part, bias in zip(h, b1.split(inner), strict=True)]
    a = function(h[0]) * h[1] if gated else function(h[0])
    y = a @ w2.t()
    return y if b2 is None else y + b2
