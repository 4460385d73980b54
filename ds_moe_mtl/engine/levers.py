"""What a run's levers do beside a training step; each does nothing where it is off."""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.engine.average import WeightAverage
from ds_moe_mtl.engine.engine import Update
from ds_moe_mtl.engine.expert_pull import pull_experts
from ds_moe_mtl.engine.optimizer_groups import GATES_GROUP
from ds_moe_mtl.models.token_level.tied import tied_share


class Levers:
    """The levers of one run: tied experts, the gates' rate, the experts' pull, averaged weights."""

    def __init__(self, engine, config: RunConfig, total_steps: int) -> None:
        self.engine, self.moe, self.train = engine, config.moe, config.train
        self._average = None
        if self.train.average_from is not None:
            first = min(math.ceil(self.train.average_from * total_steps), total_steps - 1)
            self._average = WeightAverage(engine, first)

    def gate_rates(self, share: float) -> dict[str, float]:
        """Return the gates' learning rate by their group's name, where it is one of their own.

        share: of the peak, what warm-up and decay leave of it at this step.
        """
        rate = self.moe.gate_lr
        return {} if rate is None else {GATES_GROUP: share * rate}

    def before_step(self, step: int) -> None:
        """Make the optimizer ready for a step, counted from 0.

        While experts are tied each of their copies gets 1 / sqrt(E) of the FFN's gradient: so does
        Adam's eps, and the update is the dense one.
        """
        if not self.moe.tied_steps:
            return
        tied = step < self.moe.tied_steps
        eps = self.train.eps * (tied_share(self.moe.num_experts) if tied else 1.0)
        for group in self.engine.optimizer.param_groups:
            if group.get("moe"):  # DeepSpeed's mark of a group of experts
                group["eps"] = eps

    def after_step(self, step: int, share: float, update: Update) -> None:
        """Pull the experts, and average the weights, after a step, counted from 0.

        share: as in gate_rates. A step that was skipped moves nothing; the average takes its
        weights in as they are. A collective call.
        """
        if self.moe.expert_pull and not update.skipped:
            pull_experts(self.engine, share * self.moe.expert_pull)
        if self._average is not None:
            self._average.update(step + 1)

    def averaged(self) -> AbstractContextManager:
        """Have the module's weights be the averaged ones inside the block; a collective call."""
        return nullcontext() if self._average is None else self._average.in_place()

    def save(self, folder: Path) -> None:
        """Write what a checkpoint needs beside weights and optimizer."""
        if self._average is not None:
            self._average.save(folder)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint. Raises UserError where it lacks what is needed."""
        if self._average is not None:
            self._average.load(folder)
