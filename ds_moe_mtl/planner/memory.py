"""What a run holds in memory, a rank, computed before it runs: states, activations, the peak.

P ranks, experts over ep_size of them: an expert's replicas are P / ep. T tokens of a rank's
micro-batch, S of them with attention's padding, A places of attention's scores a head (the sum
over padded sequences of their squared length), D hidden size, F intermediate size, H heads.
Measured against torch's allocator in docs/memory.md and docs/planning.md.
"""

from typing import NamedTuple

from ds_moe_mtl.planner.compute import accumulator_bytes
from ds_moe_mtl.planner.flops import Parameters, count_ffn_weights, count_parameters
from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.shape import Shape

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MASTER = 4
"""ZeRO keeps an fp32 copy of the weights it shards, in fp32 too; stage 0 has none."""

MOMENTS = 8
"""Adam's two moments, fp32."""

EXPERT_GROUP = 178_956_971
"""Weights of an optimizer group of experts at most: DeepSpeed's max_group_size (moe/utils.py)."""


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


class Tokens(NamedTuple):
    """What one micro-batch of a rank brings: T, S, A and its sequences.

    Of layers with a window, which cut long sequences into blocks of queries: scores_within, A
    there, and seen, the keys of all blocks.
    """

    real: float
    padded: float
    scores: float
    sequences: float = 0.0
    scores_within: float = 0.0
    seen: float = 0.0


class Peak(NamedTuple):
    """Bytes on one rank at the fullest moment of a step, by part. phase: which moment it is."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    phase: str

    @property
    def total(self) -> float:
        return sum(self[:5])


def count_weights(shape: Shape, num_experts: int, num_gates: int) -> Weights:
    """Return the weights of an upcycled encoder without pooler and heads."""
    return split_weights(count_parameters(shape, num_experts, num_gates))


def split_weights(parameters: Parameters) -> Weights:
    """Return the weights by how they are shared among ranks."""
    return Weights(parameters.experts, parameters.total - parameters.experts)


def state_bytes(
    weights: Weights,
    zero_stage: int,
    world_size: int,
    ep_size: int,
    precision: str,
    averages: bool = False,
) -> States:
    """Return what one rank holds. Stage 1 shards the optimizer, stage 2 the gradients too.

    A rank has experts / ep_size of the expert weights and all the rest. What ZeRO shards of the
    rest is cut into world_size parts; of the experts into world_size / ep_size parts only, their
    expert-data-parallel group. averages: a mean of the weights is kept beside what a rank updates
    (train.average_from), 4 bytes each. Source of the bytes: "ZeRO: Memory Optimizations Toward
    Training Trillion Parameter Models", section 3.1, and what DeepSpeed 0.19.8 was seen to hold.
    Raises ValueError for a stage other than 0, 1, 2 and for an ep_size that does not divide
    world_size.
    """
    if zero_stage not in (0, 1, 2):
        raise ValueError(f"zero_stage = {zero_stage}; allowed: 0, 1, 2 (3 refuses MoE layers)")
    if world_size % ep_size:
        raise ValueError(f"ep_size = {ep_size} must divide world_size = {world_size}")
    element = ELEMENT_BYTES[precision]
    master = MASTER if zero_stage or precision != "fp32" else 0
    own = weights.experts / ep_size
    mean = MASTER if averages else 0
    sharded = weights.rest / world_size + own / (world_size // ep_size)
    whole = weights.rest + own
    return States(
        weights=element * whole,
        gradients=element * (sharded if zero_stage == 2 else whole),
        optimizer=(master + MOMENTS + mean) * (sharded if zero_stage else whole),
    )


def activation_bytes(
    shape: Shape,
    tokens: Tokens,
    precision: str,
    sparse: bool,
    dropout: float,
    ep_size: int = 1,
    checkpointing: bool = False,
    on_gpu: bool = False,
    levers: Levers = NO_LEVERS,
) -> float:
    """Return what the forward pass keeps for the backward pass, on one rank.

    A layer keeps rows of D: its input, attention's result, two sums before the norms, the FFN's
    input; with dropout two masks, on a CPU of the activations' type (models/dropout.py), on a GPU
    of one byte. An FFN keeps 2 rows of F (before and
    after GELU), on a CPU the sparse one two more of D (the gathered input, the result before the
    gate value); other ranks' experts add the sent rows. A gated one keeps 4 (both halves, one of
    them activated, the product), in kernels of a GPU 3. A norm that is none of torch's keeps its
    result before the weight, and in 16 bits its input in fp32. Attention keeps query, key and value
    padded (in layers with a window keys and values of every block), for every head, and, but on a
    GPU, where it is fused, its probabilities (three copies with dropout, else one). A term for
    distances keeps its padded query or key once more. Merged experts keep the merged FFNs. With
    checkpointing a layer keeps its input alone, and one layer at a time is computed again.
    """
    element = ELEMENT_BYTES[precision]
    dropped = (1 / element if on_gpu else 1) * (dropout > 0)
    fused = on_gpu and not shape.relative
    scores = 0 if fused else (3 if dropout else 1)

    def attention(local: bool) -> float:
        keys = tokens.seen if local else tokens.padded
        rows = ((2 if fused else 1) + shape.terms) * tokens.padded + 2 * keys
        places = tokens.scores_within if local else tokens.scores
        return rows * shape.attention_width + scores * shape.heads * places

    def beside(has_experts: bool) -> float:
        gathers = has_experts and not on_gpu
        rows = 5 + shape.masks * dropped + 2 * gathers
        rows += 2 if ep_size > 1 and has_experts else 0
        rows += shape.scaled * (1 if element == 4 else 1 + 4 / element)
        activated = 1 if shape.gated and not (on_gpu and has_experts) else 0
        return (
            rows * tokens.real * shape.hidden
            + tokens.real * (shape.wide + (1 + activated) * shape.intermediate)
            + (levers.merged * count_ffn_weights(shape) if has_experts else 0)
        )

    embeddings = (2 + dropped) * tokens.real * shape.hidden
    with_experts = levers.sparse(shape) if sparse else 0
    layers = with_experts * beside(True) + (shape.layers - with_experts) * beside(False)
    layers += (shape.layers - shape.local) * attention(False) + shape.local * attention(True)
    if checkpointing:
        one = beside(with_experts > 0) + attention(shape.local == shape.layers)
        layers = shape.layers * tokens.real * shape.hidden + one
    return element * (layers + embeddings)


def peak_bytes(
    shape: Shape,
    weights: Weights,
    zero_stage: int,
    world_size: int,
    ep_size: int,
    precision: str,
    activations: float,
    tokens: Tokens,
    bucket_elements: int,
    offloads: bool = False,
    piece: int | None = None,
    levers: Levers = NO_LEVERS,
    averages: bool = False,
    flash: bool = False,
) -> Peak:
    """Return the fullest of a step's three moments, on one rank.

    backward: all activations are there, the reduction's bucket, and the first layer's gradients;
    with flash attention (flash) instead the sums of its queries' gradient and four rows of D, where
    they are more than what that layer's FFN has given back by then: with very short sequences.
    reduction (stage 0: after the last layer): the gradients once in the bucket, once beside it;
    where they are more than the bucket holds, those the rank updates once more. Stage 2 reduces
    such gradients during the backward pass, into a buffer of the rank's own that is there from the
    first bucket on, and keeps no others.
    update: the gradients a rank updates, and a piece of them in fp32 (piece weights); by
    DeepSpeed's own step (piece None) the largest group of them once more as one flat tensor, and in
    16 bits that tensor in fp32. Weights and optimizer are there in all three.
    bucket_elements: DeepSpeed's reduce_bucket_size, twice with overlap_comm; there is no bucket
    where one rank updates in pieces. offloads: the optimizer is on the host, and with it the update
    and what stage 2 shards of the gradients. averages: as in state_bytes.
    """
    states = state_bytes(weights, zero_stage, world_size, ep_size, precision, averages)
    element = ELEMENT_BYTES[precision]
    own = weights.experts / ep_size
    whole = element * (weights.rest + own)
    has_bucket = zero_stage and (piece is None or world_size > 1)
    bucket = element * bucket_elements if has_bucket else 0.0
    at_work = _at_work(shape, own, element, tokens, levers, flash)
    groups = (weights.rest / world_size, own / (world_size // ep_size))
    # A weight that two ranks' parts share is kept whole by both; the embedding is the largest.
    shared = shape.table if world_size > 1 else 0
    owned = element * min(weights.rest + own, sum(groups) + shared / 2) if zero_stage else whole
    flat = _flat(groups, element, precision, piece) if zero_stage else 0.0
    largest = element * max(weights.rest, own)
    overflowing = owned if has_bucket and whole > bucket else 0.0
    early = overflowing if zero_stage == 2 else 0.0
    if early:
        whole = 0.0
    optimizer = states.optimizer
    if offloads:
        optimizer = owned = flat = overflowing = early = 0.0
        whole = 0.0 if zero_stage == 2 else whole
    moments = [
        ("backward", early, activations, bucket + at_work),
        ("reduction", whole + overflowing, 0.0, bucket if zero_stage else largest),
        ("update", owned, 0.0, flat),
    ]
    phase, gradients, kept, buffers = max(moments, key=lambda moment: sum(moment[1:]))
    return Peak(states.weights, gradients, optimizer, kept, buffers, phase)


def _at_work(
    shape: Shape, own: float, element: int, tokens: Tokens, levers: Levers, flash: bool
) -> float:
    """Return what the first layer of the backward pass takes: gradients of weights and rows.

    own: weights of this rank's experts. Attention's sums come after its layer's FFN has given two
    rows of F back.
    """
    of_layer = own / levers.sparse(shape) if own else count_ffn_weights(shape) / 2
    inner = tokens.real * shape.intermediate
    in_attention = 4 * tokens.real * shape.hidden - 2 * inner
    summed = accumulator_bytes(tokens.real, tokens.sequences, shape.attention_width)
    in_attention += summed / element if flash else 0.0
    return element * (of_layer + max(inner, in_attention))


def _flat(groups: tuple[float, float], element: int, precision: str, piece: int | None) -> float:
    """Return the update's copies: of a piece in fp32, or of DeepSpeed's largest optimizer group.

    groups: weights that this rank updates of the rest and of the experts.
    """
    largest = max(groups[0], min(groups[1], EXPERT_GROUP))
    if piece is None:
        return largest * (element + (4 if precision != "fp32" else 0))
    return 4.0 * min(piece, largest)
