"""Parameters and floating-point operations of a network, counted before it is built.

T tokens, D hidden size, F intermediate size, E experts, G gates. A product [m, k] x [k, n] is
2 m k n operations; what is not a product (softmax, GELU, norms, dropout) is not counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.shape import Shape

BACKWARD = 2
"""Times a product's backward pass costs its forward: a gradient for each of its two factors."""


class Parameters(NamedTuple):
    """Numbers of weights by part; a token of one task uses `active` of them.

    shared: embeddings, attention, norms, the dense FFN where there are no experts, its part that
    every token passes where there are, the pooler. head: of the largest task.
    """

    shared: int
    experts: int
    gates: int
    heads: int
    active: int

    @property
    def total(self) -> int:
        return self.shared + self.experts + self.gates + self.heads


def meetings(lengths, window: int = 0) -> float:
    """Return the pairs of tokens that attention brings together in sequences of such lengths.

    lengths: a tensor of integers; window: tokens to each side that are seen, 0: all.
    """
    n = lengths.double()
    within = n * (2 * window + 1) - window * (window + 1)
    return float(n.square().where((n <= window + 1) | (window == 0), within).sum())


class Flops(NamedTuple):
    """Forward operations a token, by part; `heads` are shared out over a sequence's tokens.

    merge: making the merged FFNs, shared out over the tokens of the call.
    """

    projections: float
    attention: float
    ffn: float
    gates: float
    heads: float
    merge: float = 0.0

    @property
    def forward(self) -> float:
        return sum(self)

    @property
    def backward(self) -> float:
        return BACKWARD * self.forward

    @property
    def step(self) -> float:
        return self.forward + self.backward


def count_ffn_weights(shape: Shape, neurons: int | None = None) -> int:
    """Return the weights of one FFN, or of so many of its neurons, with the biases it has."""
    hidden, halves = shape.hidden, shape.wide // shape.intermediate
    inner = shape.intermediate if neurons is None else neurons
    biases = halves * inner + hidden if shape.biased else 0
    return (halves + 1) * hidden * inner + biases


def count_beside(shape: Shape) -> int:
    """Return the weights of a layer beside its FFN: attention and norms."""
    hidden = shape.hidden
    return 4 * (hidden * hidden + hidden) + 4 * hidden if shape.beside is None else shape.beside


def count_outside(shape: Shape) -> int:
    """Return the weights that are in no layer, without the pooler: embeddings and their norm."""
    if shape.outside is not None:
        return shape.outside
    rows = shape.vocabulary + shape.positions + shape.token_types
    return rows * shape.hidden + 2 * shape.hidden


def _count_pooler(shape: Shape) -> int:
    return shape.hidden**2 + shape.hidden if shape.pooled is None else shape.pooled


def count_parameters(
    shape: Shape,
    num_experts: int = 0,
    num_gates: int = 0,
    heads: Sequence[tuple[int, int]] = (),
    pooler: bool = False,
    levers: Levers = NO_LEVERS,
) -> Parameters:
    """Return the weights of an encoder and its linear heads; num_experts 0: the dense model.

    heads: (inputs, outputs) of each.
    """
    hidden, layers = shape.hidden, shape.layers
    sparse = levers.sparse(shape) if num_experts else 0
    expert = count_ffn_weights(shape, shape.intermediate - levers.shared)
    shared = layers * count_beside(shape) + count_outside(shape)
    shared += (layers - sparse) * count_ffn_weights(shape)
    shared += sparse * count_ffn_weights(shape, levers.shared) if levers.shared else 0
    shared += _count_pooler(shape) if pooler else 0
    of_heads = [outputs * (inputs + 1) for inputs, outputs in heads]
    gate = num_experts * (1 if levers.merged else hidden)
    active = shared + sparse * (expert + gate) + max(of_heads, default=0)
    return Parameters(
        shared, sparse * num_experts * expert, sparse * num_gates * gate, sum(of_heads), active
    )


def count_flops(
    shape: Shape,
    attended: float,
    num_experts: int = 0,
    num_gates: int = 0,
    heads: Sequence[tuple[int, int]] = (),
    heads_a_token: float = 0.0,
    levers: Levers = NO_LEVERS,
    attended_within: float | None = None,
) -> Flops:
    """Return one token's forward operations.

    attended: keys a query meets, the mean over tokens of their sequence's length (sum of squared
    lengths / sum of lengths); attended_within: the same in layers with a window (meetings / sum of
    lengths), None: as many as the window has at most. The projection of rows for distances, once a
    call, is not counted. A top-1 layer computes one expert a token, so its FFN costs the dense
    one's; the gates are counted as the model needs them, the token's own alone (one product over
    all gates, which is what small layers compute, costs G times that). heads_a_token: sequences a
    token; all heads are computed for each. A merge is one product of [gates, E] and all weights of
    an FFN: 2 x gates x E x weights, once per call and layer.
    """
    hidden, layers = shape.hidden, shape.layers
    if attended_within is None:
        attended_within = min(attended, 2 * shape.window + 1)
    met = (layers - shape.local) * attended + shape.local * attended_within
    distances = layers * 2 * shape.terms * (2 * attended - 1) * shape.attention_width
    sparse = levers.sparse(shape) if num_gates else 0
    merge = 2 * levers.merged * num_experts * count_ffn_weights(shape) / levers.call_tokens
    return Flops(
        projections=2 * (layers * shape.projected + shape.mapped),
        attention=2 * 2 * met * shape.attention_width + distances,
        ffn=layers * 2 * hidden * (shape.wide + shape.intermediate),
        gates=0 if levers.merged else sparse * 2 * hidden * num_experts,
        heads=2 * heads_a_token * sum(inputs * outputs for inputs, outputs in heads),
        merge=sparse * merge,
    )
