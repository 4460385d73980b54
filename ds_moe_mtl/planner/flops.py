"""Parameters and floating-point operations of a network, counted before it is built.

T tokens, D hidden size, F intermediate size, E experts, G gates. A product [m, k] x [k, n] is
2 m k n operations; what is not a product (softmax, GELU, norms, dropout) is not counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ds_moe_mtl.planner.shape import Shape

BACKWARD = 2
"""Times a product's backward pass costs its forward: a gradient for each of its two factors."""


class Parameters(NamedTuple):
    """Numbers of weights by part; a token of one task uses `active` of them.

    shared: embeddings, attention, norms, the dense FFN where there are no experts, the pooler.
    expert and gate: of one of each in one layer. head: of the largest task.
    """

    shared: int
    experts: int
    gates: int
    heads: int
    active: int

    @property
    def total(self) -> int:
        return self.shared + self.experts + self.gates + self.heads


class Flops(NamedTuple):
    """Forward operations a token, by part; `heads` are shared out over a sequence's tokens."""

    projections: float
    attention: float
    ffn: float
    gates: float
    heads: float

    @property
    def forward(self) -> float:
        return sum(self)

    @property
    def backward(self) -> float:
        return BACKWARD * self.forward

    @property
    def step(self) -> float:
        return self.forward + self.backward


def count_ffn_weights(shape: Shape) -> int:
    """Return the weights of one FFN with its biases: one expert."""
    hidden, inner = shape.hidden, shape.intermediate
    return 2 * hidden * inner + inner + hidden


def count_parameters(
    shape: Shape,
    num_experts: int = 0,
    num_gates: int = 0,
    heads: Sequence[tuple[int, int]] = (),
    pooler: bool = False,
) -> Parameters:
    """Return the weights of an encoder and its linear heads; num_experts 0: the dense model.

    heads: (inputs, outputs) of each.
    """
    hidden, layers = shape.hidden, shape.layers
    attention = 4 * (hidden * hidden + hidden)
    norms = 4 * hidden
    embeddings = (shape.vocabulary + shape.positions + shape.token_types) * hidden + 2 * hidden
    expert = count_ffn_weights(shape)
    shared = layers * (attention + norms) + embeddings
    shared += 0 if num_experts else layers * expert
    shared += hidden * hidden + hidden if pooler else 0
    of_heads = [outputs * (inputs + 1) for inputs, outputs in heads]
    gate = num_experts * hidden
    active = shared + layers * ((expert if num_experts else 0) + gate) + max(of_heads, default=0)
    return Parameters(
        shared, layers * num_experts * expert, layers * num_gates * gate, sum(of_heads), active
    )


def count_flops(
    shape: Shape,
    attended: float,
    num_experts: int = 0,
    num_gates: int = 0,
    heads: Sequence[tuple[int, int]] = (),
    heads_a_token: float = 0.0,
) -> Flops:
    """Return one token's forward operations.

    attended: keys a query meets, the mean over tokens of their sequence's length (sum of squared
    lengths / sum of lengths). A top-1 layer computes one expert a token, so its FFN costs the dense
    one's; the gates are counted as the model needs them, the token's own alone (one product over
    all gates, which is what small layers compute, costs G times that). heads_a_token: sequences a
    token; all heads are computed for each.
    """
    hidden, layers = shape.hidden, shape.layers
    return Flops(
        projections=layers * 4 * 2 * hidden * hidden,
        attention=layers * 2 * 2 * attended * hidden,
        ffn=layers * 2 * 2 * hidden * shape.intermediate,
        gates=layers * 2 * hidden * num_experts if num_gates else 0,
        heads=2 * heads_a_token * sum(inputs * outputs for inputs, outputs in heads),
    )
