"""What a training step costs on machines that are not at hand: a model in their bandwidths.

P ranks (GPUs), g of them in a node, n = P / g nodes, L layers, E experts, W weights.
"""

from typing import NamedTuple

from ds_moe_mtl.planner.memory import ELEMENT_BYTES, Weights
from ds_moe_mtl.planner.traffic import ROW_TRANSFERS, all_to_all_bytes, expected_remote_rows

OPTIMIZER_BYTES = 24
"""Adam reads and writes the fp32 weight and both moments."""


class Machine(NamedTuple):
    """GPUs and what joins them; bandwidths in bytes a second, one direction, a GPU."""

    gpus: int
    per_node: int
    flops: float  # sustained in a layer's products, a second
    memory: float
    nvlink: float
    network: float
    latency: float  # seconds a message

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


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
compute     = tokens a rank x FLOPs a token (forward + backward) / sustained FLOPs a second
reduction   = ring all-reduce 2 (r - 1) / r x bytes / bandwidth, of the rest over r = P ranks and of
              a rank's experts over r = P / ep; from ZeRO 1 on + (r - 1) / r for the weights' gather
all-to-all  = 4 x layers x exchange(tokens x hidden x bytes), where
  flat         = max(own node's share / NVLink, other nodes' share / network) + (ep - 1) x latency
  hierarchical = (g - 1) / g / NVLink, then (n - 1) / n / network, + (g + n - 2) x latency
optimizer   = 24 bytes a weight that this rank updates, and its gradients, / memory bandwidth
bandwidth of a ring = NVLink within a node, network across nodes; uniform routes; no overlap"""


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


def all_to_all_seconds(
    tokens: float,
    layers: int,
    hidden: int,
    precision: str,
    ep_size: int,
    machine: Machine,
    hierarchical: bool,
) -> float:
    """Return a step's exchanges: there and back, forward and backward, once a layer."""
    if ep_size == 1:
        return 0.0
    row_bytes = tokens * hidden * ELEMENT_BYTES[precision]
    return ROW_TRANSFERS * layers * exchange_seconds(row_bytes, ep_size, machine, hierarchical)


def ring_seconds(size: float, ranks: int, machine: Machine, rounds: int) -> float:
    """Return a ring's time: rounds 2 for an all-reduce, 1 for a gather or a reduce-scatter."""
    if ranks == 1:
        return 0.0
    bandwidth = machine.nvlink if machine.gpus <= machine.per_node else machine.network
    share = (ranks - 1) / ranks
    return rounds * (share * size / bandwidth + (ranks - 1) * machine.latency)


def step_cost(
    flops: float,
    tokens: float,
    layers: int,
    hidden: int,
    weights: Weights,
    zero_stage: int,
    ep_size: int,
    precision: str,
    machine: Machine,
    hierarchical: bool = False,
) -> StepCost:
    """Return the parts of one step. flops: forward and backward of one token; tokens: a rank's."""
    element, ranks = ELEMENT_BYTES[precision], machine.gpus
    own, replicas = weights.experts / ep_size, ranks // ep_size
    rounds = 3 if zero_stage else 2
    reduction = ring_seconds(element * weights.rest, ranks, machine, rounds)
    reduction += ring_seconds(element * own, replicas, machine, rounds)
    updated = weights.rest / ranks + own / replicas if zero_stage else weights.rest + own
    return StepCost(
        compute=flops * tokens / machine.flops,
        reduction=reduction,
        all_to_all=all_to_all_seconds(
            tokens, layers, hidden, precision, ep_size, machine, hierarchical
        ),
        optimizer=updated * (OPTIMIZER_BYTES + 2 * element) / machine.memory,
    )


def sent_bytes(
    tokens: float, layers: int, hidden: int, precision: str, num_experts: int, ep_size: int
) -> float:
    """Return what a rank sends in all-to-all in one step where routes are uniform."""
    rows = [expected_remote_rows(tokens, ep_size)] * layers
    return all_to_all_bytes(rows, rows, hidden, ELEMENT_BYTES[precision], num_experts, ep_size)
