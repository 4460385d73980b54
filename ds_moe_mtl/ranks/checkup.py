"""Ranks that have met, looked at before a long run: who they are, their clocks, their network.

All functions are collective calls on the group that the launcher's ranks have made.
"""

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import distributed as dist

from ds_moe_mtl.ranks.clocks import clock_faults, clock_skews
from ds_moe_mtl.ranks.machine import device_name
from ds_moe_mtl.ranks.rendezvous import Ranks

MESSAGE_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}
"""What a rank sends in a timed collective: 16 MB by gloo, 256 MB by NCCL."""

ROUNDS = 5
"""Timed calls; the fastest counts. One more goes before them."""


@dataclass(frozen=True)
class Checkup:
    """What was found. ranks: a row for each, by column; faults: lines, none where all is well.

    all_reduce, all_to_all: bytes a second that a rank sends, as nccl-tests count ("bus").
    """

    ranks: Sequence[Mapping[str, str]]
    all_reduce: float
    all_to_all: float
    faults: Sequence[str]


def check_up(ranks: Ranks, device: torch.device, versions: Mapping[str, str]) -> Checkup:
    """Return what all ranks are and how fast they speak; the same on every rank.

    versions: of this rank's packages, by name.
    """
    clocks = {0: 0.0} | clock_skews(range(1, ranks.world_size))
    card = (
        str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
        if (device.type == "cuda")
        else ""
    )
    mine = (socket.gethostname(), ranks.local_rank, device_name(device), card, versions)
    everyones: list = [None] * ranks.world_size
    dist.all_gather_object(everyones, mine)
    reduced, exchanged, wrong = _collectives(ranks, device)
    rows = [
        {
            "rank": str(rank),
            "host": host,
            "local": str(local),
            "device": name,
            "clock": f"{1000 * clocks[rank]:+.1f} ms",
            **versions,
        }
        for rank, (host, local, name, _, versions) in enumerate(everyones)
    ]
    faults = [*wrong, *_differences(everyones), *_shared_cards(everyones)]
    faults += clock_faults(clocks, [host for host, *_ in everyones])
    return Checkup(rows, reduced, exchanged, faults)


def _collectives(ranks: Ranks, device: torch.device) -> tuple[float, float, list[str]]:
    """Return bytes a second of an all-reduce and of an all-to-all, and what came out wrong."""
    world = ranks.world_size
    count = MESSAGE_BYTES[device.type] // 4 // world * world
    own = torch.full((count,), float(ranks.rank + 1), device=device)
    total = torch.empty_like(own)

    def reduce() -> None:
        total.copy_(own)
        dist.all_reduce(total)

    received = torch.empty_like(own)
    seconds = [
        _fastest(reduce, device),
        _fastest(lambda: dist.all_to_all_single(received, own), device),
    ]
    expected = torch.arange(1, world + 1, device=device).repeat_interleave(count // world)
    right = [bool((total == world * (world + 1) / 2).all()), bool((received == expected).all())]
    everyones: list = [None] * world
    dist.all_gather_object(everyones, right)
    wrong = [
        f"rank {rank}: an {name} gave wrong numbers"
        for rank, each in enumerate(everyones)
        for name, is_right in zip(("all-reduce", "all-to-all"), each, strict=True)
        if not is_right
    ]
    sent = 4 * count * (world - 1) / world
    return 2 * sent / seconds[0], sent / seconds[1], wrong


def _fastest(call, device: torch.device) -> float:
    """Return the seconds of the fastest of ROUNDS calls, on the slowest rank."""
    times = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    slowest = torch.tensor([min(times[1:])], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest)


def _differences(everyones: Sequence[tuple]) -> list[str]:
    """Return a line for each package of which ranks have different versions."""
    lines = []
    for name in everyones[0][4]:
        versions = [each[4].get(name, "not installed") for each in everyones]
        most = Counter(versions).most_common(1)[0][0]
        odd = [
            f"rank {rank} on {everyones[rank][0]} has {version}"
            for rank, version in enumerate(versions)
            if version != most
        ]
        if odd:
            lines.append(f"{name} differs: {', '.join(odd[:3])}; others have {most}")
    return lines


def _shared_cards(everyones: Sequence[tuple]) -> list[str]:
    """Return a line for each GPU that several ranks have taken."""
    taken: dict[tuple, list[int]] = {}
    for rank, (host, _, _, card, _) in enumerate(everyones):
        if card:
            taken.setdefault((host, card), []).append(rank)
    return [
        f"ranks {', '.join(map(str, ranks))} on {host} share one GPU; allowed: one rank a GPU"
        for (host, _), ranks in taken.items()
        if len(ranks) > 1
    ]
