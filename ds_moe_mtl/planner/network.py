"""What rings and exchanges take over the links of a machine: a model in their bandwidths.

P ranks (GPUs), g of them in a node, n = P / g nodes. Compared with gloo's collectives over shaped
links in docs/network.md.
"""

import math
from collections import Counter
from typing import NamedTuple


class Machine(NamedTuple):
    """GPUs and what joins them; bandwidths in bytes a second, one direction.

    flops: a second; share: the part of them that products reach, None: by their shape, as
    planner.rates has it. nvlink: of a GPU; network: of a network card; nics: network cards of a
    node, which its GPUs share; None: one for each GPU. latency: seconds a message. host_wait:
    seconds that a GPU stands still where the host waits for it in the middle of a layer.
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
    nics: int | None = None

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


class Wire(NamedTuple):
    """Seconds of communication, by whether all ranks of a collective share a node.

    across: of collectives that cross nodes, which wait for the network, whatever of them stays
    within; within: of all others.
    """

    within: float = 0.0
    across: float = 0.0

    @property
    def total(self) -> float:
        return self.within + self.across

    def times(self, factor: float) -> "Wire":
        return Wire(factor * self.within, factor * self.across)

    def plus(self, other: "Wire") -> "Wire":
        return Wire(self.within + other.within, self.across + other.across)


def exchange_seconds(row_bytes: float, ep_size: int, machine: Machine, hierarchical: bool) -> Wire:
    """Return one all-to-all of `row_bytes` bytes a rank over every ep_size consecutive ranks.

    All groups exchange at once and share what network cards their nodes have. hierarchical: first
    within the node, to the rank whose place is the receiver's, then across nodes between ranks of
    one place: fewer and larger messages, and the rows cross NVLink first. Groups that have no
    hierarchy (has_hierarchy) exchange flat.
    """
    if ep_size == 1:
        return Wire()
    nodes = _beside(ep_size, machine)
    if hierarchical and has_hierarchy(ep_size, machine):
        inside = nodes[0][0]
        others = ep_size // inside
        within = row_bytes * (inside - 1) / inside / machine.nvlink
        across = row_bytes * (others - 1) / others / _card_share(machine, machine.per_node)
        return Wire(
            within + (inside - 1) * machine.latency, across + (others - 1) * machine.latency
        )
    within = across = 0.0
    for ranks in nodes:
        leaving = [row_bytes * (ep_size - inside) / ep_size for inside in ranks if inside < ep_size]
        within = max(within, row_bytes * (max(ranks) - 1) / ep_size / machine.nvlink)
        if leaving:
            share = _card_share(machine, len(leaving))
            across = max(across, max(leaving) / machine.network, _mean(leaving) / share)
    seconds = max(within, across) + (ep_size - 1) * machine.latency
    return Wire(across=seconds) if across else Wire(within=seconds)


def has_hierarchy(ep_size: int, machine: Machine) -> bool:
    """Return whether groups of ep_size ranks lie on several nodes, as many ranks on each, above 1.

    Within a node, and with one rank on each, there is one way alone.
    """
    counts = {inside for ranks in _beside(ep_size, machine) for inside in ranks}
    return len(counts) == 1 and 1 < min(counts) < ep_size


def hierarchy_pays_below(ep_size: int, machine: Machine) -> float:
    """Return the bytes a rank below which the hierarchical exchange is the cheaper one.

    0: it never is; infinite: it always is. Both exchanges are a line in the bytes, so it is where
    the lines meet. Where the network is slower than NVLink, what leaves the node takes as long in
    both; (g - 1) (n - 1) messages are saved and (g - 1) / g of the rows pass NVLink once more, so
    they meet at g (n - 1) x latency x NVLink.
    """
    flat, layered = (
        [exchange_seconds(size, ep_size, machine, kind).total for size in (0.0, 1e9)]
        for kind in (False, True)
    )
    saved = flat[0] - layered[0]
    added = (layered[1] - layered[0]) - (flat[1] - flat[0])
    if saved <= 0:
        return 0.0
    return 1e9 * saved / added if added > 0 else math.inf


def ring_bandwidth(machine: Machine, stride: int = 1) -> float:
    """Return the bytes a second of the rings over every stride-th rank, all of them at once.

    Rank r is on node r // g. A ring crosses nodes through a network card for each of its ranks
    there (a channel each), so a ring over whole nodes has g cards; where a node has fewer, the
    rings through it share them. The node with fewest bounds it. Within a node, and never above it,
    NVLink does.
    """
    crossing = [ring for ring in _rings(machine, stride) if len(ring) > 1]
    through = Counter(node for ring in crossing for node in ring)
    slowest = machine.nvlink
    for ring in crossing:
        for node, members in ring.items():
            cards = members
            if machine.nics is not None:
                cards = min(members, machine.nics / through[node])
            slowest = min(slowest, cards * machine.network)
    return slowest


def ring_seconds(size: float, machine: Machine, rounds: int, stride: int = 1) -> Wire:
    """Return a ring's time over every stride-th rank, of `size` bytes on each.

    rounds: 2 for an all-reduce, 1 for a gather or a reduce-scatter.
    """
    ranks = machine.gpus // stride
    if ranks == 1:
        return Wire()
    passed = (ranks - 1) / ranks * size / ring_bandwidth(machine, stride)
    seconds = rounds * (passed + (ranks - 1) * machine.latency)
    crosses = any(len(ring) > 1 for ring in _rings(machine, stride))
    return Wire(across=seconds) if crosses else Wire(within=seconds)


def _rings(machine: Machine, stride: int) -> list[Counter]:
    """Return how many ranks each ring over every stride-th rank has on each node."""
    return [
        Counter(rank // machine.per_node for rank in range(place, machine.gpus, stride))
        for place in range(stride)
    ]


def _beside(ep_size: int, machine: Machine) -> list[list[int]]:
    """Return, node by node and rank by rank, how many of a rank's group are there with it."""
    found = []
    for start in range(0, machine.gpus, machine.per_node):
        stop = min(start + machine.per_node, machine.gpus)
        firsts = [rank - rank % ep_size for rank in range(start, stop)]
        found.append([min(first + ep_size, stop) - max(first, start) for first in firsts])
    return found


def _card_share(machine: Machine, senders: int) -> float:
    """Return the bytes a second that each of a node's ranks sends out, `senders` at once."""
    cards = senders if machine.nics is None else min(senders, machine.nics)
    return cards / senders * machine.network


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
