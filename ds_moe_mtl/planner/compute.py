"""Seconds that one GPU computes in a step: products, attention, and passes over memory.

T tokens and B sequences of a micro-batch, D hidden size, F intermediate size, e bytes an element.
"""

from typing import NamedTuple

from ds_moe_mtl.planner.flops import Flops, count_ffn_weights, meetings
from ds_moe_mtl.planner.levers import Levers
from ds_moe_mtl.planner.rates import beside_products
from ds_moe_mtl.planner.shape import Shape

TILE = 128
"""Rows and keys that torch's flash kernel computes at a time, for heads of 64 and less."""

FLASH_PRODUCTS = 14
"""Products of [128, d] tiles, forward 2 and backward 5, of 2 operations each."""

ACCUMULATOR_PASSES = 4
"""Flash's gradient of the queries, fp32, is zeroed, read and written in sums, and cast."""

WEIGHT_PASSES = 3
"""A weight is read forward and backward, and its gradient is written."""


class Batch(NamedTuple):
    """What one rank computes: the mean micro-batch, and how many there are in a step.

    places: of attention's scores, a head: the sum of (tokens of a sequence, filled up to TILE)^2;
    places_within: those that layers with a window compute.
    """

    tokens: float
    sequences: float
    places: float
    micro_batches: int = 1
    places_within: float = 0.0


def tiled(lengths, window: int = 0) -> float:
    """Return the `places` of a batch of sequences of such lengths (a tensor of integers).

    window: tokens to each side that are seen, 0: all; tiles beyond it are left out.
    """
    return TILE**2 * meetings((lengths + TILE - 1) // TILE, -(-window // TILE))


def accumulator_bytes(tokens: float, sequences: float, width: int) -> float:
    """Return flash attention's fp32 sums of the queries' gradient: [T + 128 B, heads, d].

    width: heads x d.
    """
    return 4 * (tokens + TILE * sequences) * width


class Speed(NamedTuple):
    """Sustained: operations a second in products of this shape, and bytes a second of memory."""

    flops: float
    memory: float


def compute_seconds(
    shape: Shape,
    flops: Flops,
    batch: Batch,
    experts: float,
    levers: Levers,
    element: int,
    dropout: bool,
    speed: Speed,
) -> float:
    """Return the forward and backward passes of a step on one rank.

    flops: forward, of one token; experts: that this rank holds, a layer; 0: a dense model. Every
    kind of product takes its operations or the reading of its weights, whichever is longer: with
    few tokens a rank's experts are read for little. Embeddings, heads' weights, launches and what
    the host does meanwhile are not counted.
    """
    sparse = levers.sparse(shape) if experts else 0
    dense = shape.layers - sparse
    ffn = count_ffn_weights(shape)
    shared = count_ffn_weights(shape, levers.shared) if levers.shared else 0
    of_expert = count_ffn_weights(shape, shape.intermediate - levers.shared)
    read = levers.merged * ffn if levers.merged else shared + experts * of_expert

    def products(operations: float, weights: float) -> float:
        computed = 3 * operations * batch.tokens / speed.flops
        return max(computed, WEIGHT_PASSES * element * weights / speed.memory)

    seconds = products(flops.projections, shape.layers * shape.projected + shape.mapped)
    seconds += products(flops.ffn * dense / shape.layers, dense * ffn)
    seconds += products(flops.ffn * sparse / shape.layers, sparse * read)
    seconds += products(flops.gates + flops.heads + flops.merge, 0)
    seconds += _attention_seconds(shape, flops, batch, element, speed)
    moved = shape.layers * batch.tokens * beside_bytes(shape, element, dropout)
    return batch.micro_batches * (seconds + moved / speed.memory)


def beside_bytes(shape: Shape, element: int, dropout: bool) -> float:
    """Return the bytes a token and layer moved by what is not a product, forward and backward.

    Counted for BERT's layers, taken for every family's but for the FFN's activation and the masks
    of dropout. Both halves of a layer: the sum with what goes around it reads two rows and writes
    one, and so does the sum of their gradients; the norm 2 rows forward, 5 backward (its weights'
    gradients read both again); dropout 2 and 2, and its mask of one byte written and read. The
    gradients of query, key and value are summed (6 rows), their biases' and attention's result's
    read (4). And what an FFN has (rates.beside_products).
    """
    dropped = shape.masks * (4 * element + 2) if dropout else 0
    rows = 2 * element * (3 + 3 + 7) + dropped + element * (6 + 4)
    ffn = beside_products(shape.hidden, shape.intermediate, element, shape.gated, shape.biased)
    return shape.hidden * rows + ffn


def _attention_seconds(
    shape: Shape, flops: Flops, batch: Batch, element: int, speed: Speed
) -> float:
    """Return flash attention's seconds in 16 bits, which fills sequences up to tiles; in fp32, and
    with terms for distances, the products alone."""
    if element > 2 or shape.relative:
        return 3 * flops.attention * batch.tokens / speed.flops
    width, everywhere = shape.attention_width, shape.layers - shape.local
    places = everywhere * batch.places + shape.local * batch.places_within
    summed = shape.layers * accumulator_bytes(batch.tokens, batch.sequences, width)
    operations = FLASH_PRODUCTS * places * width
    return operations / speed.flops + ACCUMULATOR_PASSES * summed / speed.memory
