"""One training step: what a run takes and what a benchmark times.

Examples are counted by the loader: a micro-batch's loss is the sum over its examples divided by
the examples of the whole super-batch, times what DeepSpeed divides by afterwards.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch.profiler import record_function

from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.engine.engine import Update, optimizer_step, set_learning_rate
from ds_moe_mtl.engine.levers import Levers
from ds_moe_mtl.engine.skipped import Part, loss_scale
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.task_level.task_router import ROUTER_GROUP, VECTORS_GROUP
from ds_moe_mtl.training.plan import RunPlan
from ds_moe_mtl.training.schedule import learning_rate

FORWARD, BACKWARD, OPTIMIZER = (f"ds_moe_mtl::{name}" for name in ("forward", "backward", "step"))
"""The parts of a step by name, in a trace and in a benchmark."""

Span = Callable[[str], AbstractContextManager]


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves on this rank."""

    parts: list[Part]  # each micro-batch with its sequences' losses [B], detached
    counts: list[Sequence[torch.Tensor]]  # by micro-batch: tokens of each expert [E], by layer
    update: Update
    loss_scale: float | None  # fp16's in the step, which may have changed it

    @property
    def norm(self) -> float | None:
        """The gradient's norm before clipping; None where it is not known or was not finite."""
        return None if self.update.skipped else self.update.norm


def training_loss(
    network: torch.nn.Module,
    outputs,
    batch: MultiTaskBatch,
    share: float,
    scaling: bool,
    task_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (each sequence's loss [B], the scalar to differentiate) of one micro-batch.

    The scalar is the examples' sum times `share`, with the layers' auxiliary losses. scaling: as
    in losses.sequence_losses. task_weights [tasks]: of examples in the scalar; None: all 1.
    """
    losses_B = network.losses(outputs, batch, scaling)
    weights_B = batch.weights_B
    if task_weights is not None:
        weights_B = weights_B * task_weights[batch.task_ids_B]
    return losses_B, (losses_B * weights_B).sum() * share + outputs.aux_loss


class TrainingStep:
    """Takes the steps of one engine, on this rank."""

    def __init__(
        self,
        engine,
        plan: RunPlan,
        device: torch.device,
        span: Span = record_function,
        progress: Callable[[int], None] = lambda step: None,
    ) -> None:
        """span(name) is entered around each part of each micro-batch: FORWARD, BACKWARD, OPTIMIZER.

        progress(step), counted from 1, is called after each micro-batch.
        """
        self.engine, self.plan, self.device = engine, plan, device
        self.span, self.progress = span, progress
        weights = torch.tensor([spec.loss_weight for spec in plan.specs], device=device)
        self.task_weights = weights if (weights != 1).any() else None
        self.levers = Levers(engine, plan.config, plan.total_steps)

    def take(
        self, step: int, micro_batches: list[MultiTaskBatch], num_examples: int, wants_norm: bool
    ) -> StepOutcome:
        """Take step `step`, counted from 0, and return what came of it; a collective call.

        num_examples: of the whole super-batch, over all ranks. wants_norm: whether the gradient's
        norm is asked for, which a GPU makes the host wait for.
        """
        config, engine = self.plan.config, self.engine
        rate_share = self._set(step)
        share = dist.get_world_size() * len(micro_batches) / num_examples
        scale, parts, counts = loss_scale(engine), [], []
        for batch in micro_batches:
            with self.span(FORWARD):
                batch = batch.to(self.device)
                outputs = engine(**network_inputs(batch))
                scaling, weights = config.train.loss_scaling, self.task_weights
                losses_B, loss = training_loss(
                    engine.module, outputs, batch, share, scaling, weights
                )
            with self.span(BACKWARD):
                engine.backward(loss)
            parts.append((losses_B.detach(), batch))
            counts.append(outputs.counts)
            del outputs, losses_B, loss  # not held through the update
            with self.span(OPTIMIZER):
                update = optimizer_step(engine, wants_norm, config)
            self.progress(step + 1)
        self.levers.after_step(step, rate_share, update)
        return StepOutcome(parts, counts, update, scale)

    def _set(self, step: int) -> float:
        """Seed the step, and set what depends on its number: rates, the router's temperature.

        Returns the share of the peak rates that warm-up and decay leave.
        """
        config = self.plan.config
        # Dropout depends on seed, step and rank alone: nothing to store, resumes are exact.
        torch.manual_seed(_step_seed(config.run.seed, step, dist.get_rank()))
        share = learning_rate(step, self.plan.total_steps, self.plan.warmup_steps, 1.0)
        rates = {
            ROUTER_GROUP: share * config.router.lr,
            VECTORS_GROUP: share * config.router.vectors_lr,
            **self.levers.gate_rates(share),
        }
        set_learning_rate(self.engine, share * config.train.lr, rates)
        self.engine.module.set_step(step)
        self.levers.before_step(step)
        return share


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for one step of one rank, different for all of them."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)
