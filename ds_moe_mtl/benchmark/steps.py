"""A run's training steps (training.step), timed by part."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch

from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.engine.engine import device_type, start_engine
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.training.plan import RunPlan
from ds_moe_mtl.training.step import BACKWARD, FORWARD, StepOutcome, TrainingStep

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Step = tuple[list[MultiTaskBatch], int]
"""A rank's micro-batches, and the examples of the whole super-batch."""


@dataclass
class Split:
    """Seconds of one step. optimizer: the rest: the reduction's end, the norm and the gather."""

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


class EngineSteps:
    """The steps of a plan's run on an engine of its own, from the first on. A collective call.

    outcome: what the newest step left.
    """

    def __init__(
        self, network: MultiTaskNetwork, plan: RunPlan, world_size: int, device: torch.device
    ) -> None:
        deepspeed = resolve_deepspeed(plan.config, world_size, device_type())
        self.engine = start_engine(network, plan.config, deepspeed)
        self.engine.train()
        self.world_size, self.device = world_size, device
        self.outcome: StepOutcome | None = None
        self._taken, self._last = 0, plan.total_steps - 1
        self._step = TrainingStep(self.engine, plan, device, self._timed)

    def step(self, step: Step, clock: Callable[[], float] = time.perf_counter) -> Split:
        """Take a step and return where its time went; `data` is left to the caller.

        A step beyond the run's last has the last one's learning rate. The gradient's norm is not
        asked for, as in the steps of a run that are not logged.
        """
        micro_batches, examples = step
        self._clock, self._spent = clock, {}
        self.outcome = None  # not held through the step
        began = now(self.device, clock)
        number = min(self._taken, self._last)
        self.outcome = self._step.take(number, micro_batches, examples, wants_norm=False)
        total = now(self.device, clock) - began
        self._taken += 1
        forward, backward = self._spent[FORWARD], self._spent[BACKWARD]
        return Split(0.0, forward, backward, total - forward - backward)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = now(self.device, self._clock)
        yield
        passed = now(self.device, self._clock) - began
        self._spent[name] = self._spent.get(name, 0.0) + passed


def now(device: torch.device, clock: Callable[[], float]) -> float:
    """Return the time, on a GPU after all its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
