"""The training loop: super-batches in, steps, logged rows, dev scores, checkpoints.

Examples are counted by the loader: a micro-batch's loss is the sum over its examples divided by
the examples of the whole super-batch, times what DeepSpeed divides by afterwards.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed as dist
from torch.profiler import record_function

from ds_moe_mtl.data import MultiTaskBatch, SuperBatches
from ds_moe_mtl.engine.engine import optimizer_step, set_learning_rate
from ds_moe_mtl.models.losses import batch_losses, network_inputs, task_sums
from ds_moe_mtl.models.task_level.task_router import ROUTER_GROUP, VECTORS_GROUP
from ds_moe_mtl.ranks.stop import StopRequest
from ds_moe_mtl.ranks.watchdog import Watchdog
from ds_moe_mtl.training.dev import evaluate
from ds_moe_mtl.training.levers import Levers
from ds_moe_mtl.training.metrics_log import MetricsLog
from ds_moe_mtl.training.plan import RunPlan
from ds_moe_mtl.training.schedule import learning_rate
from ds_moe_mtl.training.selection import Selection
from ds_moe_mtl.training.skipped import SkippedSteps, loss_scale
from ds_moe_mtl.training.trace import BACKWARD, FORWARD, OPTIMIZER, StepTrace

AGREE_EVERY_ON_GPU = 8
"""Steps between two agreements on a stop request; each makes the host wait for the GPU."""

MOST_NAMED = 16
"""Tasks that a printed line names one by one; the metrics file always has all."""


class TrainingLoop:
    """Runs steps `first_step` to plan.total_steps of one engine."""

    def __init__(
        self,
        engine,
        plan: RunPlan,
        loader: SuperBatches,
        device: torch.device,
        stop: StopRequest,
        log: MetricsLog | None,
        skipped: SkippedSteps,
        watchdog: Watchdog,
        save: Callable[[int], None],
        say: Callable[[str], None],
        selection: Selection | None = None,
    ) -> None:
        """log is None on all ranks but rank 0; save(step) is a collective call.

        selection is told of every evaluation; None: the last model is the run's.
        """
        self.engine, self.plan, self.loader, self.device = engine, plan, loader, device
        self.stop, self.log, self.save, self.say = stop, log, save, say
        self.skipped, self.watchdog = skipped, watchdog
        self.train = plan.config.train
        self.levers = Levers(engine, plan.config, plan.total_steps)
        self.selection = selection
        self.results: dict[str, dict] = {}
        self.steps_done = 0
        self._window = _Window(len(plan.specs), device)

    def run(self, first_step: int) -> bool:
        """Return True when all steps are done, False when stopped after a checkpoint.

        The selection's patience may end the run before its last step: `steps_done` says where.
        """
        folder = Path(self.plan.config.run.dir)
        trace = StepTrace(self.train.profile, folder, dist.get_rank(), self.say)
        try:
            return self._run(first_step, trace)
        finally:
            trace.close()

    def _run(self, first_step: int, trace: StepTrace) -> bool:
        total = self.plan.total_steps
        eval_every = self.plan.eval_every
        self._saved = self.steps_done = first_step
        if self.selection is not None and self.selection.exhausted:
            return True
        self.engine.train()
        batches = iter(self.loader)
        self._window.start(first_step, self.loader.stall_seconds)
        for step in range(first_step, total):
            self.watchdog.progress(step + 1)
            micro_batches, num_examples = next(batches)
            self._step(step, micro_batches, num_examples)
            trace.step()
            done = self.steps_done = step + 1
            last = done == total
            row = {"step": done}
            if self._is_logged(done):
                row.update(self._training_row(done))
            if last or (eval_every and done % eval_every == 0):
                row.update(self._dev_row(done))
                last = last or (self.selection is not None and self.selection.exhausted)
            if self.log is not None and len(row) > 1:
                self.log.write(row)
            if self.train.save_every and done % self.train.save_every == 0 and not last:
                self._save(done)
            if not last and self._stop_agreed(done):
                self._save(done)
                self.loader.close()
                return False
            if last:
                break
        if not self.results and self.selection is None:
            self._dev_row(self.steps_done)  # continued after its last step
        if self.train.keep_checkpoints:
            self._save(self.steps_done)
        self.loader.close()
        if total > first_step:
            self.say(
                f"padding: {100 * self.loader.attention_padding:.0f}% of the tokens that attention "
                f"saw on this rank, none elsewhere"
            )
        return True

    def _step(self, step: int, micro_batches: list[MultiTaskBatch], num_examples: int) -> None:
        # Dropout depends on seed, step and rank alone: nothing to store, resumes are exact.
        torch.manual_seed(_step_seed(self.plan.config.run.seed, step, dist.get_rank()))
        config = self.plan.config
        share = learning_rate(step, self.plan.total_steps, self.plan.warmup_steps, 1.0)
        rates = {
            ROUTER_GROUP: share * config.router.lr,
            VECTORS_GROUP: share * config.router.vectors_lr,
            **self.levers.gate_rates(share),
        }
        set_learning_rate(self.engine, share * self.train.lr, rates)
        self.engine.module.set_step(step)
        self.levers.before_step(step)
        divided_by = dist.get_world_size() * len(micro_batches)
        scale, parts = loss_scale(self.engine), []
        for batch in micro_batches:
            batch = batch.to(self.device)
            with record_function(FORWARD):
                outputs = self.engine(**network_inputs(batch))
                scaling = self.train.loss_scaling
                losses_B = batch_losses(self.engine.module, outputs, batch, scaling)
                loss = (losses_B * batch.weights_B).sum() * (divided_by / num_examples)
            with record_function(BACKWARD):
                self.engine.backward(loss + outputs.aux_loss)
            with record_function(OPTIMIZER):
                update = optimizer_step(self.engine, self._is_logged(step + 1), config)
            parts.append((losses_B.detach(), batch))
            self._window.add_loads(outputs.counts)
            self.watchdog.progress(step + 1)
        self.levers.after_step(step, share, update.skipped)
        self._norm = None if update.skipped else update.norm
        for losses_B, batch in parts:
            self._window.add(losses_B, batch, update.skipped)
        if update.skipped:
            self.skipped.skipped(step + 1, parts, scale)
        else:
            self.skipped.taken()

    def _training_row(self, step: int) -> dict:
        """Return losses, rates and norm since the last row, and print them."""
        row = self._window.row(step, [spec.name for spec in self.plan.specs])
        row["lr"] = self.engine.optimizer.param_groups[0]["lr"]
        if self._norm is not None:
            row["grad_norm"] = self._norm
        if self.skipped.count:
            row["skipped"] = self.skipped.count
        row["stall"] = self._window.stall(self.loader.stall_seconds)
        row["stall_seconds"] = self._window.stall_seconds(self.loader.stall_seconds)
        self.say(_progress(row, self.plan.total_steps))
        self._window.start(step, self.loader.stall_seconds)
        return row

    def _dev_row(self, step: int) -> dict:
        """Return the dev scores, and print them."""

        def progress() -> None:
            self.watchdog.progress(step, "dev scores")

        progress()
        losses = {} if self.train.select == "dev_loss" else None
        last = step == self.plan.total_steps
        with self.levers.averaged() if last else nullcontext():
            self.results = evaluate(self.engine.module, self.plan, self.device, progress, losses)
        values = {name: result["value"] for name, result in self.results.items()}
        scores = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        if len(values) > MOST_NAMED:
            scores = f"mean {sum(values.values()) / len(values):.2f} over {len(values)} tasks"
        self.say(f"step {step}: dev  {scores}")
        if self.selection is not None:
            self.selection.offer(step, self.results, losses or {})
        self._window.start(step, self.loader.stall_seconds)
        row = {f"dev/{name}": result["value"] for name, result in self.results.items()}
        return row | {f"dev_loss/{name}": loss for name, loss in (losses or {}).items()}

    def _save(self, step: int) -> None:
        if step != self._saved:
            self.watchdog.progress(step, "checkpoint")
            self.save(step)
            if self.selection is not None:
                self.selection.checkpointed()
            self._saved = step
            self.watchdog.saved(step)
            self._window.start(step, self.loader.stall_seconds)

    def _is_logged(self, step: int) -> bool:
        return step % self.train.log_every == 0 or step == self.plan.total_steps

    def _stop_agreed(self, step: int) -> bool:
        if self.device.type == "cuda" and step % AGREE_EVERY_ON_GPU:
            return False
        return self.stop.agreed(self.device)


class _Window:
    """What is summed between two logged rows, over this rank until `row` adds the others."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.num_tasks, self.device = num_tasks, device

    def start(self, step: int, stalled: float) -> None:
        self._step, self._stalled, self._began = step, stalled, time.perf_counter()
        self._sums = torch.zeros((2, self.num_tasks), device=self.device)
        self._tokens = self._attended = 0.0
        self._loads_LE = None

    def add_loads(self, counts: list[torch.Tensor]) -> None:
        """Count the tokens that each layer's experts got; counts: [E] a layer."""
        if counts:
            loads_LE = torch.stack(counts).double()
            self._loads_LE = loads_LE if self._loads_LE is None else self._loads_LE + loads_LE

    def add(self, losses_B: torch.Tensor, batch: MultiTaskBatch, skipped: bool) -> None:
        if not skipped:
            self._sums += task_sums(losses_B, batch.weights_B, batch.task_ids_B, self.num_tasks)
        self._tokens += batch.num_tokens
        self._attended += batch.num_tokens / (1 - batch.attention_padding)

    def stall(self, stalled: float) -> float:
        """Return the share of the window that the step waited for its batch."""
        return (stalled - self._stalled) / max(time.perf_counter() - self._began, 1e-9)

    def stall_seconds(self, stalled: float) -> float:
        """Return the seconds of the window that steps waited for their batches, on this rank."""
        return stalled - self._stalled

    def row(self, step: int, names: list[str]) -> dict:
        """Return the logged row of the window; a collective call.

        Losses and examples are those of steps that were taken, not skipped.
        """
        tokens = torch.tensor(
            [self._tokens, self._attended], dtype=torch.float64, device=self.device
        )
        dist.all_reduce(self._sums)
        dist.all_reduce(tokens)
        seconds = time.perf_counter() - self._began
        loss_sum, examples = self._sums.double().tolist()
        row = {"step": step}
        if sum(examples):
            row["loss"] = sum(loss_sum) / sum(examples)
        for name, task_loss, count in zip(names, loss_sum, examples, strict=True):
            if count:
                row[f"loss/{name}"] = task_loss / count
        real, attended = tokens.tolist()
        row["tokens_per_s"] = real / seconds
        row["attention_padding"] = 1 - real / max(attended, 1.0)
        row["examples_per_s"] = sum(examples) / seconds
        row["steps_per_s"] = (step - self._step) / seconds
        if self._loads_LE is not None:
            dist.all_reduce(self._loads_LE)
            row.update(_load_shares(self._loads_LE))
        return row


def _load_shares(loads_LE: torch.Tensor) -> dict[str, float]:
    """Return each expert's share of a layer's tokens as "load/<layer>/<expert>", both from 1."""
    shares_LE = loads_LE / loads_LE.sum(dim=1, keepdim=True).clamp(min=1)
    return {
        f"load/{layer}/{expert}": round(share, 4)
        for layer, row in enumerate(shares_LE.tolist(), 1)
        for expert, share in enumerate(row, 1)
    }


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for one step of one rank, different for all of them."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)


def _progress(row: dict, total: int) -> str:
    """Return the line a person reads: step, losses, rate, time left."""
    by_task = [f"{key[5:]} {value:.3f}" for key, value in row.items() if key.startswith("loss/")]
    losses = " ".join(by_task) if len(by_task) <= MOST_NAMED else f"{len(by_task)} tasks"
    loss = f"loss {row['loss']:.3f} ({losses})" if "loss" in row else "no loss"
    norm = f"  norm {row['grad_norm']:.2f}" if "grad_norm" in row else ""
    skipped = f"  {row['skipped']} skipped" if "skipped" in row else ""
    left = int((total - row["step"]) / row["steps_per_s"])
    clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    return (
        f"step {row['step']:>{len(str(total))}}/{total}  {loss}  "
        f"lr {row['lr']:.1e}{norm}  {row['examples_per_s']:.0f} ex/s "
        f"{row['tokens_per_s']:,.0f} tok/s  wait {100 * row['stall']:.1f}%{skipped}  {clock} left"
    )
