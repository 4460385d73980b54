"""One rank of tests/soak/network.py: it does what it is asked, and says how long that took.

    python network_rank.py FOLDER CONFIG [section.key=value ...]

Asks and answers are files of FOLDER, a shared one: ask<N>.json for all, answer<N>.<RANK>.json of
each. Only collectives go over the network.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from torch import distributed

from ds_moe_mtl.benchmark.steps import EngineSteps, Step
from ds_moe_mtl.benchmark.workload import Workload, find_workload
from ds_moe_mtl.config import load_config
from ds_moe_mtl.engine.engine import start_process_group, stop_process_group
from ds_moe_mtl.ranks.rendezvous import Ranks, rendezvous

METERED = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather",
    "all_to_all_single",
    "broadcast",
    "reduce",
)
"""Functions of torch.distributed whose calls in a step are timed: all that a step makes."""


RECEIVES_FIRST = ", receives first"
STEPS = 8  # that are had ready, and taken in turn


class Meter:
    """The seconds of this process's collectives, call by call. It replaces torch's functions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        for name in METERED:
            setattr(distributed, name, self._timed(name, getattr(distributed, name)))

    def _timed(self, name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            assert not options.get("async_op"), f"{name} is not waited for, and cannot be timed"
            began = time.perf_counter()
            result = function(*arguments, **options)
            self.calls.append((name, time.perf_counter() - began))
            return result

        return call


Way = Callable[[torch.Tensor, torch.Tensor, object], None]


def at_once(taken: torch.Tensor, given: torch.Tensor, group) -> None:
    """Exchange equal parts by torch's own all-to-all."""
    distributed.all_to_all_single(taken, given, group=group)


def receives_first(taken: torch.Tensor, given: torch.Tensor, group) -> None:
    """Exchange equal parts by messages, all receives posted before the first is sent.

    gloo's own all-to-all sends first. A rank that comes late then has its peer's permission
    already and sends all its bytes before its own permission, on the same connection: the peer
    waits, and the link carries one direction after the other.
    """
    peers = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    me = peers.index(distributed.get_rank())
    ins, outs = taken.view(len(peers), -1), given.view(len(peers), -1)
    ins[me].copy_(outs[me])
    others = [(me + shift) % len(peers) for shift in range(1, len(peers))]
    waiting = [distributed.irecv(ins[place], peers[place], group=group) for place in others]
    waiting += [distributed.isend(outs[place], peers[place], group=group) for place in others]
    for work in waiting:
        work.wait()


class Rank:
    """What a rank can be asked, by the method's name."""

    def __init__(self, ranks: Ranks, workload: Workload, steps: list[Step], meter: Meter) -> None:
        self.ranks, self.workload, self.steps, self.meter = ranks, workload, steps, meter
        self.engines: dict[int, EngineSteps] = {}
        each = ranks.local_world_size
        nodes = ranks.world_size // each
        places = [[node * each + place for node in range(nodes)] for place in range(each)]
        inside = [list(range(node * each, (node + 1) * each)) for node in range(nodes)]
        self.across = self._group(places)
        self.within = self._group(inside)

    def ping(self, peer: int, repeats: int) -> list[float]:
        """Return the seconds of messages between rank 0 and `peer`: half of a round trip each.

        Of the two ranks; the others wait and return none.
        """
        seconds, message, me = [], torch.zeros(1), self.ranks.rank
        for _ in range(repeats if me in (0, peer) else 0):
            began = time.perf_counter()
            for sender in (0, peer):
                if me == sender:
                    distributed.send(message, peer - me)
                else:
                    distributed.recv(message, sender)
            seconds.append((time.perf_counter() - began) / 2)
        distributed.barrier()
        return seconds

    def collective(self, kind: str, size: int, calls: int, repeats: int) -> list[float]:
        """Return the seconds of a collective of `size` bytes a rank, `calls` of them at a time."""
        world = self.ranks.world_size
        given = torch.ones(size // 4 // world * world)
        taken = torch.empty_like(given)
        part = given.chunk(world)[self.ranks.rank].clone()
        way = receives_first if kind.endswith(RECEIVES_FIRST) else at_once
        work = {
            "all-reduce": lambda: distributed.all_reduce(taken),
            "gather": lambda: distributed.all_gather_into_tensor(taken, part),
            "all-to-all": lambda: way(taken, given, None),
            "all-to-all within": lambda: way(taken, given, self.within),
            "hierarchical": lambda: self._hierarchical(given, way),
        }[kind.removesuffix(RECEIVES_FIRST)]
        seconds = []
        for _ in range(repeats + (repeats > 1)):
            taken.fill_(1)
            distributed.barrier()
            began = time.perf_counter()
            for _ in range(calls):
                work()
            seconds.append((time.perf_counter() - began) / calls)
        return seconds[-repeats:]  # the first of several is not counted

    def ready(self, ep_size: int) -> None:
        """Have an engine that has taken its first step, which allocates."""
        if ep_size not in self.engines:
            workload = self.workload.of_kind(self.workload.config.model.kind, ep_size)
            world = self.ranks.world_size
            engine = EngineSteps(workload.network(), workload.plan, world, torch.device("cpu"))
            engine.take(self.steps[0])
            self.engines[ep_size] = engine

    def step(self, ep_size: int, number: int) -> dict:
        """Take a training step; return its seconds and those of its collectives."""
        step = self.steps[number % len(self.steps)]
        distributed.barrier()
        self.meter.calls.clear()
        began = time.perf_counter()
        self.engines[ep_size].take(step)
        return {"seconds": time.perf_counter() - began, "calls": list(self.meter.calls)}

    def check(self) -> None:
        """Raise AssertionError where an exchange brings other rows than torch's own does."""
        world = self.ranks.world_size
        given = torch.arange(2 * world) + 100 * self.ranks.rank
        meant, taken = torch.empty_like(given), torch.empty_like(given)
        at_once(meant, given, None)
        receives_first(taken, given, None)
        found = [taken, *(self._hierarchical(given, way) for way in (at_once, receives_first))]
        assert all(torch.equal(meant, each) for each in found), (meant, found)

    def _group(self, members: list[list[int]]):
        """Return this rank's group of those."""
        groups = [distributed.new_group(ranks) for ranks in members]
        return next(g for g, m in zip(groups, members, strict=True) if self.ranks.rank in m)

    def _hierarchical(self, given: torch.Tensor, way: Way) -> torch.Tensor:
        """Return what an all-to-all does, first within the host and then across hosts.

        The first brings every rank the parts for the ranks of its own place on all hosts.
        """
        each = self.ranks.local_world_size
        nodes = self.ranks.world_size // each
        by_place = given.view(nodes, each, -1).transpose(0, 1).contiguous()
        inside = torch.empty_like(by_place)
        way(inside, by_place, self.within)
        by_node = inside.transpose(0, 1).contiguous()
        taken = torch.empty_like(by_node)
        way(taken, by_node, self.across)
        return taken.view_as(given)


def main(folder: Path, config: str, overrides: list[str]) -> None:
    ranks, meter = rendezvous(os.environ), Meter()
    start_process_group(ranks)
    workload = find_workload(load_config(config, overrides), None, lambda line: None)
    with closing(workload.plan.super_batches(ranks.rank, ranks.world_size)) as loader:
        steps = list(islice(loader, STEPS))
    rank = Rank(ranks, workload, steps, meter)
    rank.check()
    number = 0
    while True:
        path = folder / f"ask{number}.json"
        while not path.exists():
            time.sleep(0.01)
        ask = json.loads(path.read_text())
        if ask["what"] == "end":
            break
        answer = getattr(rank, ask["what"])(**ask["options"])
        made = folder / f"answer{number}.{ranks.rank}.tmp"
        made.write_text(json.dumps(answer))
        made.rename(made.with_suffix(".json"))
        number += 1
    stop_process_group()
    sys.stdout.flush()
    os._exit(0)  # as train.py: gloo's threads abort the interpreter's shutdown now and then


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
