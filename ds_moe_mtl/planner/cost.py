"""What a training step costs on machines that are not at hand: a model in their bandwidths.

P ranks (GPUs), g of them in a node, n = P / g nodes, L layers, E experts, W weights.
"""

from collections import Counter
from typing import NamedTuple

from ds_moe_mtl.planner.compute import Batch, Speed, compute_seconds
from ds_moe_mtl.planner.flops import Flops
from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.memory import ELEMENT_BYTES, Weights
from ds_moe_mtl.planner.rates import product_share
from ds_moe_mtl.planner.shape import Shape
from ds_moe_mtl.planner.traffic import (
    COUNT_BYTES,
    ROW_TRANSFERS,
    all_to_all_bytes,
    expected_remote_rows,
)
from ds_moe_mtl.planner.update import update_bytes


class Machine(NamedTuple):
    """GPUs and what joins them; bandwidths in bytes a second, one direction, a GPU.

    flops: a second; share: the part of them that products reach, None: by their shape, as
    planner.rates has it. latency: seconds a message. host_wait: seconds that a GPU stands still
    where the host waits for it in the middle of a layer.
    """

    gpus: int
    per_node: int
    flops: float
    memory: float
    nvlink: float
    network: float
    latency: float
    host_wait: float = 0.0
    share: float | None = None

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


class Work(NamedTuple):
    """What one rank does in a step. flops: forward, of one token; num_experts 0: a dense model.

    piece: as in update.update_bytes.
    """

    shape: Shape
    flops: Flops
    batch: Batch
    weights: Weights
    precision: str
    num_experts: int = 0
    levers: Levers = NO_LEVERS
    dropout: bool = True
    piece: int | None = None


class StepCost(NamedTuple):
    """Seconds of a step, nothing overlapped: an upper bound where communication hides."""

    compute: float
    reduction: float
    all_to_all: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(self)


FORMULA = """\
compute     = forward and backward: each kind of product FLOPs / rate of its shape, or three passes
              over its weights / memory bandwidth where that is longer (a rank's experts all
              together); attention in tiles of 128 x 128; norms, dropout, GELU, sums and biases by
              the bytes that they move / memory bandwidth
reduction   = ring all-reduce 2 (r - 1) / r x bytes / bandwidth, of the rest over r = P ranks and of
              a rank's experts over r = P / ep; from ZeRO 1 on + (r - 1) / r for the weights' gather
              a ring's bandwidth = NVLink within a node; across nodes the network cards of its ranks
              in a node together (at most NVLink)
all-to-all  = a micro-batch and sparse layer 4 x exchange(tokens x hidden x bytes), one exchange of
              the counts and one wait of the host, where
  flat         = max(own node's share / NVLink, other nodes' share / network) + (ep - 1) x latency
  hierarchical = (g - 1) / g / NVLink, then (n - 1) / n / network, + (g + n - 2) x latency
optimizer   = the bytes that the update in use moves a weight (planner/update.py), of the weights
              that this rank updates / memory bandwidth
uniform routes; no overlap; embeddings, launches and the host's other work are not counted"""


def exchange_seconds(row_bytes: float, ep_size: int, machine: Machine, hierarchical: bool) -> float:
    """Return one all-to-all of `row_bytes` bytes a rank over ep_size consecutive ranks.

    hierarchical: first within the node, to the rank whose place is the receiver's, then across
    nodes between ranks of one place: fewer and larger messages, and the rows cross NVLink first.
    """
    inside = min(ep_size, machine.per_node)
    nodes = -(-ep_size // machine.per_node)
    if hierarchical and nodes > 1:
        within = row_bytes * (inside - 1) / inside / machine.nvlink
        across = row_bytes * (nodes - 1) / nodes / machine.network
        return within + across + (inside + nodes - 2) * machine.latency
    within = row_bytes * (inside - 1) / ep_size / machine.nvlink
    across = row_bytes * (ep_size - inside) / ep_size / machine.network
    return max(within, across) + (ep_size - 1) * machine.latency


def all_to_all_seconds(work: Work, ep_size: int, machine: Machine, hierarchical: bool) -> float:
    """Return a step's exchanges: rows there and back, forward and backward, and their counts.

    The counts of every expert go once a layer and forward pass, and the host waits for them: it
    must know how many rows come.
    """
    if ep_size == 1:
        return 0.0
    batch, shape = work.batch, work.shape
    row_bytes = batch.tokens * shape.hidden * ELEMENT_BYTES[work.precision]
    counts = exchange_seconds(COUNT_BYTES * work.num_experts, ep_size, machine, False)
    rows = exchange_seconds(row_bytes, ep_size, machine, hierarchical)
    calls = batch.micro_batches * work.levers.sparse(shape)
    return calls * (ROW_TRANSFERS * rows + counts + machine.host_wait)


def ring_bandwidth(machine: Machine, stride: int = 1) -> float:
    """Return the bytes a second of the rings over every stride-th rank, all of them at once.

    Rank r is on node r // g. A ring crosses nodes through the network cards of all its ranks there
    (a channel each), so a ring over whole nodes has g cards; the node with fewest bounds it. Within
    a node, and never above it, NVLink does.
    """
    slowest = machine.nvlink
    for place in range(stride):
        members = Counter(r // machine.per_node for r in range(place, machine.gpus, stride))
        if len(members) > 1:
            slowest = min(slowest, min(members.values()) * machine.network)
    return slowest


def ring_seconds(size: float, machine: Machine, rounds: int, stride: int = 1) -> float:
    """Return a ring's time over every stride-th rank, of `size` bytes on each.

    rounds: 2 for an all-reduce, 1 for a gather or a reduce-scatter.
    """
    ranks = machine.gpus // stride
    if ranks == 1:
        return 0.0
    share = (ranks - 1) / ranks
    passed = share * size / ring_bandwidth(machine, stride)
    return rounds * (passed + (ranks - 1) * machine.latency)


def step_cost(
    work: Work, machine: Machine, zero_stage: int, ep_size: int, hierarchical: bool = False
) -> StepCost:
    """Return the parts of one step. ep_size must divide the machine's GPUs."""
    element, weights, replicas = (
        ELEMENT_BYTES[work.precision],
        work.weights,
        machine.gpus // ep_size,
    )
    own = weights.experts / ep_size
    rounds = 3 if zero_stage else 2
    reduction = ring_seconds(element * weights.rest, machine, rounds)
    reduction += ring_seconds(element * own, machine, rounds, ep_size) if own else 0.0
    share = machine.share
    if share is None:
        share = product_share(work.shape.hidden, work.batch.tokens)
    updated = weights.rest / machine.gpus + own / replicas if zero_stage else weights.rest + own
    return StepCost(
        compute=compute_seconds(
            work.shape,
            work.flops,
            work.batch,
            work.num_experts / ep_size,
            work.levers,
            element,
            work.dropout,
            Speed(share * machine.flops, machine.memory),
        ),
        reduction=reduction,
        all_to_all=all_to_all_seconds(work, ep_size, machine, hierarchical),
        optimizer=updated * update_bytes(element, zero_stage, work.piece) / machine.memory,
    )


def sent_bytes(
    tokens: float, layers: int, hidden: int, precision: str, num_experts: int, ep_size: int
) -> float:
    """Return what a rank sends in all-to-all in one step where routes are uniform."""
    rows = [expected_remote_rows(tokens, ep_size)] * layers
    return all_to_all_bytes(rows, rows, hidden, ELEMENT_BYTES[precision], num_experts, ep_size)
