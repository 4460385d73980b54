"""train.py with a fault planted in one rank's loader, for tests of hangs and failures.

    hanging.py KIND RANK STEP CONFIG [section.key=value ...]

KIND: wait (RANK waits for ever before STEP, in Python), raise (it fails there), full (a write of it
finds no room there), die (its thread
that builds batches ends there without a word), slow (every rank takes half a second a step, so that
a test can stop a process in the midst of it).
"""

import os
import sys
import time
from collections.abc import Callable

from ds_moe_mtl.cli.train import main
from ds_moe_mtl.training.plan import RunPlan


class Faulty:
    """A loader that does what KIND says before STEP (counted from 1)."""

    def __init__(self, loader, kind: str, step: int) -> None:
        self.loader, self.kind, self.step = loader, kind, step
        self.close, self.state_dict = loader.close, loader.state_dict
        self.load_state_dict = loader.load_state_dict
        self.most_examples = loader.most_examples

    @property
    def stall_seconds(self) -> float:
        return self.loader.stall_seconds

    @property
    def attention_padding(self) -> float:
        return self.loader.attention_padding

    def __iter__(self):
        batches = iter(self.loader)
        while True:
            step = self.loader.state_dict()["step"] + 1
            if self.kind == "slow":
                time.sleep(0.5)
            elif step == self.step:
                self.fault()
            yield next(batches)

    def fault(self) -> None:
        if self.kind == "raise":
            raise OSError(f"no batch for step {self.step}")
        if self.kind == "full":
            with open("/dev/full", "w") as file:
                file.write("a row")
        wait_for_ever()


def wait_for_ever() -> None:
    while True:
        time.sleep(60)


def dying(build: Callable, step: int) -> Callable:
    """Return `build` with an end of its thread, which no exception reports, in place of STEP."""

    def build_or_die(position):
        if position.step + 1 == step:
            raise SystemExit
        return build(position)

    return build_or_die


def plant(kind: str, faulty_rank: int, step: int) -> None:
    original = RunPlan.super_batches

    def super_batches(plan: RunPlan, rank: int = 0, world_size: int = 1, *rest):
        loader = original(plan, rank, world_size, *rest)
        if kind == "die":
            if rank == faulty_rank:
                loader.build = dying(loader.build, step)
            return loader
        return Faulty(loader, kind, step) if kind == "slow" or rank == faulty_rank else loader

    RunPlan.super_batches = super_batches


if __name__ == "__main__":
    plant(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    status = main(sys.argv[4:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as train.py
