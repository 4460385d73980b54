"""What a run holds in memory, a rank: weights, gradients and optimizer, computed before a run.

Activations are not in it. P ranks, experts over ep_size of them: an expert's replicas are P / ep.
"""

from typing import NamedTuple

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MASTER_AND_MOMENTS = 12
"""Adam in 16 bits: an fp32 copy of each weight and two fp32 moments."""

MOMENTS = 8
"""Adam in fp32 needs no further copy."""


class Shape(NamedTuple):
    """A BERT-like encoder."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int = 30_522
    positions: int = 512


SIZES = {
    "minilm": Shape(6, 384, 1536),
    "bert_base": Shape(12, 768, 3072),
    "bert_large": Shape(24, 1024, 4096),
}


class Weights(NamedTuple):
    """Numbers of weights: in experts, and in all the rest (whole on every rank)."""

    experts: int
    rest: int

    @property
    def total(self) -> int:
        return self.experts + self.rest


class States(NamedTuple):
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def count_weights(shape: Shape, num_experts: int, num_gates: int) -> Weights:
    """Return the weights of an upcycled encoder without pooler and heads."""
    hidden, inner = shape.hidden, shape.intermediate
    ffn = 2 * hidden * inner + inner + hidden
    attention = 4 * (hidden * hidden + hidden)
    norms = 4 * hidden
    gates = num_gates * num_experts * hidden
    embeddings = (shape.vocabulary + shape.positions + 2) * hidden + 2 * hidden
    return Weights(
        experts=shape.layers * num_experts * ffn,
        rest=shape.layers * (attention + norms + gates) + embeddings,
    )


def state_bytes(
    weights: Weights, zero_stage: int, world_size: int, ep_size: int, precision: str
) -> States:
    """Return what one rank holds. Stage 1 shards the optimizer, stage 2 the gradients too.

    A rank has experts / ep_size of the expert weights and all the rest. What ZeRO shards of the
    rest is cut into world_size parts; of the experts into world_size / ep_size parts only, their
    expert-data-parallel group. Source of the bytes: "ZeRO: Memory Optimizations Toward Training
    Trillion Parameter Models", section 3.1. Raises ValueError for a stage other than 0, 1, 2 and
    for an ep_size that does not divide world_size.
    """
    if zero_stage not in (0, 1, 2):
        raise ValueError(f"zero_stage = {zero_stage}; allowed: 0, 1, 2 (3 refuses MoE layers)")
    if world_size % ep_size:
        raise ValueError(f"ep_size = {ep_size} must divide world_size = {world_size}")
    element = ELEMENT_BYTES[precision]
    per_weight = MOMENTS if precision == "fp32" else MASTER_AND_MOMENTS
    own = weights.experts / ep_size
    sharded = weights.rest / world_size + own / (world_size // ep_size)
    whole = weights.rest + own
    return States(
        weights=element * whole,
        gradients=element * (sharded if zero_stage == 2 else whole),
        optimizer=per_weight * (sharded if zero_stage else whole),
    )
