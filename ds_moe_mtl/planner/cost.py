"""What a training step costs on machines that are not at hand.

P ranks (GPUs), g of them in a node, n = P / g nodes. Links are planner.network's.
"""

from typing import NamedTuple

from ds_moe_mtl.planner.compute import Batch, Speed, compute_seconds
from ds_moe_mtl.planner.flops import Flops
from ds_moe_mtl.planner.levers import NO_LEVERS, Levers
from ds_moe_mtl.planner.memory import ELEMENT_BYTES, Weights
from ds_moe_mtl.planner.network import Machine, Wire, exchange_seconds, ring_seconds
from ds_moe_mtl.planner.rates import product_share
from ds_moe_mtl.planner.shape import Shape
from ds_moe_mtl.planner.traffic import (
    COUNT_BYTES,
    ROW_TRANSFERS,
    all_to_all_bytes,
    expected_remote_rows,
)
from ds_moe_mtl.planner.update import update_bytes


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
    """Seconds of a step, nothing overlapped: an upper bound where communication hides.

    reduction_network, all_to_all_network: what of both crosses nodes.
    """

    compute: float
    reduction: float
    all_to_all: float
    optimizer: float
    reduction_network: float = 0.0
    all_to_all_network: float = 0.0

    @property
    def network(self) -> float:
        """What crosses nodes."""
        return self.reduction_network + self.all_to_all_network

    @property
    def total(self) -> float:
        return self.compute + self.reduction + self.all_to_all + self.optimizer


FORMULA = """\
compute     = forward and backward: each kind of product FLOPs / rate of its shape, or three passes
              over its weights / memory bandwidth where that is longer (a rank's experts all
              together); attention in tiles of 128 x 128; norms, dropout, GELU, sums and biases by
              the bytes that they move / memory bandwidth
reduction   = ring all-reduce 2 (r - 1) / r x bytes / bandwidth, of the rest over r = P ranks and of
              a rank's experts over r = P / ep; from ZeRO 1 on + (r - 1) / r for the weights' gather
              a ring's bandwidth = NVLink within a node; across nodes the network cards of its ranks
              in a node together (at most NVLink), shared where rings or ranks are more than cards
all-to-all  = a micro-batch and sparse layer 4 x exchange(tokens x hidden x bytes), one exchange of
              the counts and one wait of the host, where
  flat         = max(own node's share / NVLink, other nodes' share / network) + (ep - 1) x latency
  hierarchical = (g - 1) / g / NVLink, then (n - 1) / n / network, + (g + n - 2) x latency
network     = rings and exchanges whose ranks are on several nodes; of a hierarchical exchange its
              second half; all other seconds of both columns stay within a node
optimizer   = the bytes that the update in use moves a weight (planner/update.py), of the weights
              that this rank updates / memory bandwidth
uniform routes; no overlap; embeddings, launches and the host's other work are not counted"""


def row_bytes(work: Work) -> float:
    """Return the bytes of rows that a rank brings into one exchange, its own share included."""
    return work.batch.tokens * work.shape.hidden * ELEMENT_BYTES[work.precision]


def all_to_all_seconds(work: Work, ep_size: int, machine: Machine, hierarchical: bool) -> Wire:
    """Return a step's exchanges: rows there and back, forward and backward, and their counts.

    The counts of every expert go once a layer and forward pass, the way that rows go, and the host
    waits for them: it must know how many rows come.
    """
    if ep_size == 1:
        return Wire()
    counts = exchange_seconds(COUNT_BYTES * work.num_experts, ep_size, machine, hierarchical)
    rows = exchange_seconds(row_bytes(work), ep_size, machine, hierarchical)
    call = rows.times(ROW_TRANSFERS).plus(counts).plus(Wire(within=machine.host_wait))
    return call.times(work.batch.micro_batches * work.levers.sparse(work.shape))


def reduction_seconds(weights: Weights, element: int, machine: Machine, rounds: int, ep_size: int):
    """Return the rings of a step as a Wire: of what all ranks hold, and of a rank's experts."""
    rest = ring_seconds(element * weights.rest, machine, rounds)
    own = element * weights.experts / ep_size
    return rest.plus(ring_seconds(own, machine, rounds, ep_size)) if own else rest


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
    reduction = reduction_seconds(weights, element, machine, rounds, ep_size)
    exchanges = all_to_all_seconds(work, ep_size, machine, hierarchical)
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
        reduction=reduction.total,
        all_to_all=exchanges.total,
        optimizer=updated * update_bytes(element, zero_stage, work.piece) / machine.memory,
        reduction_network=reduction.across,
        all_to_all_network=exchanges.across,
    )


def sent_bytes(
    tokens: float, layers: int, hidden: int, precision: str, num_experts: int, ep_size: int
) -> float:
    """Return what a rank sends in all-to-all in one step where routes are uniform."""
    rows = [expected_remote_rows(tokens, ep_size)] * layers
    return all_to_all_bytes(rows, rows, hidden, ELEMENT_BYTES[precision], num_experts, ep_size)
