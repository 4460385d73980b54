"""A run's training steps (training.step), timed by part."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ds_moe_mtl.benchmark.stopwatch import Marks, Split, Stopwatch
from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.engine.engine import device_type, start_engine
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.training.plan import RunPlan
from ds_moe_mtl.training.step import BACKWARD, FORWARD, StepOutcome, TrainingStep, training_loss

Step = tuple[list[MultiTaskBatch], int]
"""A rank's micro-batches, and the examples of the whole super-batch."""

PARTS = {FORWARD: "forward", BACKWARD: "backward"}


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
        self._marks: Marks | None = None
        self._step = TrainingStep(self.engine, plan, device, self._part)

    def take(self, step: Step) -> None:
        """Take a step, waiting for nothing.

        A step beyond the run's last has the last one's learning rate. The gradient's norm is not
        asked for, as in the steps of a run that are not logged.
        """
        micro_batches, examples = step
        self.outcome = None  # not held through the step
        number = min(self._taken, self._last)
        self.outcome = self._step.take(number, micro_batches, examples, wants_norm=False)
        self._taken += 1

    def marked(self, step: Step, watch: Stopwatch) -> Marks:
        """Take a step and return its marks, waiting for nothing."""
        self._marks = marks = Marks(watch, watch.mark())
        self.take(step)
        marks.ended, self._marks = watch.mark(), None
        return marks

    def step(self, step: Step, watch: Stopwatch | None = None) -> Split:
        """Take a step and return where its time went; `data` is left to the caller."""
        watch = watch or Stopwatch(self.device)
        marks = self.marked(step, watch)
        watch.wait()
        return marks.split()

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        marks, part = self._marks, PARTS.get(name)
        if marks is None or part is None:
            yield
            return
        began = marks.watch.mark()
        yield
        marks.parts.setdefault(part, []).append((began, marks.watch.mark()))


class ModelSteps:
    """Forward and backward passes of a plain network, without an engine or an update."""

    def __init__(self, network: MultiTaskNetwork, loss_scaling: bool) -> None:
        self.network, self.loss_scaling = network, loss_scaling

    def take(self, step: Step) -> None:
        """Compute a step's gradients, and let them go."""
        self._pass(step, None)

    def marked(self, step: Step, watch: Stopwatch) -> Marks:
        """Compute a step's gradients and return its marks, waiting for nothing."""
        marks = Marks(watch, watch.mark())
        self._pass(step, marks)
        return marks

    def _pass(self, step: Step, marks: Marks | None) -> None:
        micro_batches, examples = step
        for batch in micro_batches:
            began = marks and marks.watch.mark()
            outputs = self.network(**network_inputs(batch))
            _, loss = training_loss(self.network, outputs, batch, 1 / examples, self.loss_scaling)
            middle = marks and marks.watch.mark()
            loss.backward()
            if marks is not None:
                marks.ended = marks.watch.mark()
                marks.parts.setdefault("forward", []).append((began, middle))
                marks.parts.setdefault("backward", []).append((middle, marks.ended))
        self.network.zero_grad()
