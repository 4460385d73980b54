"""One run: its network, engine, data and files, from the plan to results.json."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import distributed as dist

from ds_moe_mtl.config import plain_values
from ds_moe_mtl.config.files import read_json, shown_bytes, write_json
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.engine.engine import rank_zero_says, start_engine
from ds_moe_mtl.engine.skipped import SkippedSteps
from ds_moe_mtl.evaluation.outputs import with_thresholds
from ds_moe_mtl.evaluation.predictions import FILE as PREDICTIONS
from ds_moe_mtl.evaluation.predictions import collect_predictions, write_predictions
from ds_moe_mtl.models.attention.choice import UNPADDED
from ds_moe_mtl.models.description import read_description, save_folder
from ds_moe_mtl.ranks.machine import environment
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.ranks.stop import StopRequest
from ds_moe_mtl.ranks.watchdog import Watchdog
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tracking.metrics_log import MetricsLog, StepLines, read_metrics
from ds_moe_mtl.tracking.tracker import Followed, Trackers
from ds_moe_mtl.training.about import about_run, banner
from ds_moe_mtl.training.checkpoint import (
    check_can_save,
    choose_whole,
    find_resume,
    identity_of,
    load_checkpoint,
    save_checkpoint,
)
from ds_moe_mtl.training.dev import Evaluation, score_test
from ds_moe_mtl.training.model_files import model_files
from ds_moe_mtl.training.network import described, new_network, with_untrained
from ds_moe_mtl.training.plan import RunPlan
from ds_moe_mtl.training.results import data_notes, encoder_facts, run_results
from ds_moe_mtl.training.run_folder import RunFolder
from ds_moe_mtl.training.selection import Selection
from ds_moe_mtl.training.step import StepOutcome, TrainingStep

OWED = "owed.json"
"""The row of a step whose evaluation a stop has cut short: it is written with the scores."""


@dataclass(frozen=True)
class Shared:
    """What the runs of one command share. deepspeed: the resolved JSON."""

    deepspeed: dict
    device: torch.device
    ranks: Ranks
    stop: StopRequest
    watchdog: Watchdog
    say: Callable[[str], None]


class Run:
    """build, prepare, restore, then step and save as often as needed, close, finish.

    All but build and close are collective calls.

    first_step: steps that are done when it begins.
    evaluation: the newest, with the outputs for each task's dev split; the same on every rank.
    selection: which step's model is kept; None: the last one's.
    log: where rows go, on rank 0; None on the others.
    owed: the row of first_step, where its evaluation is still to be made; on every rank.
    """

    def __init__(self, plan: RunPlan, folder: RunFolder) -> None:
        self.plan, self.config, self.folder = plan, plan.config, folder
        self.network = None
        self.first_step = 0
        self.evaluation: Evaluation | None = None
        self.selection: Selection | None = None
        self.log: MetricsLog | None = None
        self.owed: dict | None = None

    def build(self, deepspeed: dict, world_size: int) -> None:
        """Make the network, and look at the checkpoints: what is wrong with either shows here.

        Raises UserError for what the user can mend.
        """
        self.network, self.sha256 = new_network(self.plan)
        self.identity = identity_of(self.plan, self.sha256, world_size, deepspeed)
        self._find_resume()

    def prepare(self, shared: Shared) -> None:
        """Start the engine and what feeds it."""
        self.shared = shared
        ranks = shared.ranks
        if self.network is None:
            self.build(shared.deepspeed, ranks.world_size)
        self.found = self._find_resume()  # looked at again: the folder is now held
        self.about = about_run(self.network, self.plan, shared.deepspeed, shared.device)
        self.engine = start_engine(self.network, self.config, shared.deepspeed)
        padded = self.about["attention"] not in UNPADDED
        self.loader = self.plan.super_batches(
            ranks.rank, ranks.world_size, padded, shared.device.index
        )
        self.training_step = TrainingStep(
            self.engine, self.plan, shared.device, progress=shared.watchdog.progress
        )

    def restore(self) -> None:
        """Continue the newest whole checkpoint, if there is one, and open the run's files."""
        shared, train = self.shared, self.config.train
        chosen = choose_whole(self.found, shared.say)
        if chosen is not None:
            self.first_step, state = load_checkpoint(self.engine, chosen, self.identity, shared.say)
            self.loader.load_state_dict(state)
            self.training_step.levers.load(chosen)
            shared.say(f"continuing {chosen} after step {self.first_step}")
            shared.watchdog.saved(self.first_step)
            self.owed = rank_zero_says(self._owed_row())
        check_can_save(self.engine, self.folder.checkpoints, self.first_step)
        if train.select != "last":
            self.selection = Selection(
                self.folder.path, self.first_step, train.patience, self._write_best, train.select
            )
        lines = None
        if shared.ranks.rank == 0:
            about = environment(shared.ranks, shared.device, self.about)
            self.folder.write_start(shared.deepspeed, about)
            self.log = MetricsLog(self.folder.path, self.first_step, self._trackers())
            lines = StepLines(self.folder.path / "skipped.jsonl", self.first_step)
        self.watch_skipped(lines)
        for line in banner(self.about, self.plan, self.loader.most_examples):
            shared.say(line)

    def watch_skipped(self, lines: StepLines | None) -> None:
        """Write steps that are skipped to `lines`; None on all ranks but rank 0."""
        names = [spec.name for spec in self.plan.specs]
        most = self.config.train.max_skipped
        self.skipped = SkippedSteps(
            self.engine, names, self.folder.path, most, lines, self.shared.say
        )

    def step(
        self, step: int, micro_batches: list[MultiTaskBatch], num_examples: int
    ) -> StepOutcome:
        """Take step `step`, counted from 0, and return what came of it."""
        wants_norm = self.is_logged(step + 1)
        outcome = self.training_step.take(step, micro_batches, num_examples, wants_norm)
        self.skipped.look(step + 1, outcome.update, outcome.parts, outcome.loss_scale)
        return outcome

    def is_logged(self, step: int) -> bool:
        """Return whether metrics.jsonl gets a row of `step`, counted from 1."""
        return step % self.config.train.log_every == 0 or step == self.plan.total_steps

    def save(self, step: int) -> None:
        """Write the checkpoint of `step` steps."""
        shared = self.shared
        self.skipped.settle()
        shared.watchdog.progress(step, "checkpoint")
        keep = max(1, self.config.train.keep_checkpoints)
        path = save_checkpoint(
            self.engine,
            self.folder.checkpoints,
            step,
            self.identity,
            self.loader.state_dict(),
            keep,
            model_files(self.engine.module, self.plan, self.sha256),
            self.training_step.levers.save,
        )
        shared.say(f"checkpoint: {path} ({shown_bytes(path)})")
        if self.selection is not None:
            self.selection.checkpointed()
        shared.watchdog.saved(step)

    def averaged(self) -> AbstractContextManager:
        """Have the weights be train.average_from's mean inside the block; without it, as they are.

        A collective call.
        """
        return self.training_step.levers.averaged()

    def close(self) -> None:
        """Stop reading data, and close the files."""
        self.loader.close()
        if self.log is not None:
            self.log.close()
        if self.skipped.lines is not None:
            self.skipped.lines.close()

    def finish(self, steps: int) -> dict:
        """Write the model folder and results.json after `steps` steps, and return the results.

        Lets the engine go.
        """
        folder, selection, watchdog = self.folder, self.selection, self.shared.watchdog
        self.skipped.settle()
        watchdog.progress(steps, "model folder")
        if selection is None:
            best, scores = None, self._tuned()[1]
            with self.averaged():
                self._write_model(folder.path / "model")
            self._keep_predictions(folder.path)
        else:
            best = selection.best_step
            selection.finish(folder.path / "model")
            first = self.shared.ranks.rank == 0
            kept = read_description(folder.path / "model")["about"] if first else {}
            scores = rank_zero_says(kept.get("results"))
        results = run_results(self.plan, scores, self.sha256, steps, best)
        dist.barrier()
        self.engine.destroy()
        test = score_test(
            folder.path / "model",
            self.plan,
            self.shared.device,
            lambda: watchdog.progress(steps, "test scores"),
        )
        results |= {"test": test} if test else {}
        if self.shared.ranks.rank == 0:
            selected = folder.path / "model" / PREDICTIONS
            if selected.exists():
                selected.replace(folder.path / PREDICTIONS)
            write_json(folder.path / "results.json", results)
            if not self.config.train.keep_checkpoints:
                shutil.rmtree(folder.checkpoints, ignore_errors=True)
        dist.barrier()
        watchdog.rest()
        return results

    def owe(self, row: dict) -> None:
        """Leave a step's row to whoever continues the run, to be written with its scores."""
        if self.log is not None:
            write_json(self.folder.path / OWED, row)

    def pay(self) -> None:
        """Say that the row which was owed is written."""
        if self.log is not None:
            (self.folder.path / OWED).unlink(missing_ok=True)

    def _owed_row(self) -> dict | None:
        """Return rank 0's row that is owed of first_step; None where there is none."""
        folder = self.folder.path
        if self.shared.ranks.rank or not (folder / OWED).exists():
            return None
        row = read_json(folder / OWED)
        written = {each["step"] for each in read_metrics(folder / "metrics.jsonl")}
        if row["step"] == self.first_step and row["step"] not in written:
            return row
        return None  # of a step that the run has not come to, or has passed

    def _trackers(self) -> Trackers:
        names = tuple(spec.name for spec in self.plan.specs)
        run = Followed(self.folder.path, plain_values(self.config), names, self.first_step)
        return Trackers(self.config.track, run, self.shared.say)

    def _find_resume(self) -> list[Path]:
        return find_resume(self.config.run.resume, self.folder.checkpoints, self.identity)

    def _write_best(self, path: Path, _: dict) -> None:
        self._write_model(path)
        self._keep_predictions(path)

    def _keep_predictions(self, folder: Path) -> None:
        """Write what the newest evaluation gave for every dev row, on rank 0."""
        if self.shared.ranks.rank == 0:
            plan, outputs = self.plan, self.evaluation.outputs
            kept = collect_predictions(self._tuned()[0], plan.dev, outputs, plan.tokenizer)
            write_predictions(folder, kept)

    def _tuned(self) -> tuple[list[TaskSpec], dict[str, dict]]:
        """Return rows and results with the thresholds that the newest evaluation calls for."""
        plan, found = self.plan, self.evaluation
        return with_thresholds(plan.specs, plan.dev, found.outputs, found.results)

    def _write_model(self, folder: Path) -> None:
        """Write a canonical model folder from all ranks' experts; a collective call."""
        from ds_moe_mtl.moe.convert import plain_state

        state = plain_state(self.engine.module)
        if state is None:
            return
        specs, scores = self._tuned()
        about = {
            "results": scores,
            "encoder": encoder_facts(self.plan, self.sha256),
            "notes": data_notes(self.plan),
        }
        state = with_untrained(state, self.engine.module, self.plan)
        description = described(self.engine.module, replace(self.plan, specs=specs), about)
        save_folder(folder, description, state, self.plan.tokenizer)
