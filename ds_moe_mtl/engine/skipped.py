"""Steps that were not taken because a loss or a gradient was not finite: why, and over what.

A skipped step leaves weights and moments as they are on every rank. Which examples were in it
goes into skipped.jsonl: {"step", "reason": "loss" | "gradient", "examples": {task: [rows]}}, rows
being those of the task's tokenised training split.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed as dist

from ds_moe_mtl.config import Diverged
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.engine.engine import Update
from ds_moe_mtl.tracking.metrics_log import StepLines

NAMED = 8  # rows of one task that the printed line names; the file has all

Part = tuple[torch.Tensor, MultiTaskBatch]  # a micro-batch's losses [B], and the batch


class SkippedSteps:
    """Explains skipped steps and counts them; the same count in a row on every rank."""

    def __init__(
        self,
        engine,
        tasks: Sequence[str],
        folder: Path,
        max_in_a_row: int,
        lines: StepLines | None,
        say: Callable[[str], None],
    ) -> None:
        """lines is None on all ranks but rank 0."""
        self.engine, self.tasks, self.folder = engine, list(tasks), folder
        self.max_in_a_row, self.lines, self.say = max_in_a_row, lines, say
        self.in_a_row, self._late = 0, None

    @property
    def count(self) -> int:
        """Skipped steps of the whole run so far, 0 on ranks that keep no file."""
        return self.lines.count if self.lines is not None else 0

    def look(
        self, step: int, update: Update, parts: Sequence[Part], scale_before: float | None
    ) -> None:
        """Explain `step`, counted from 1, where it was skipped, or with the next one what is late.

        parts: this rank's micro-batches; scale_before: fp16's loss scale in the step. A collective
        call. Raises Diverged, on every rank, past max_in_a_row.
        """
        self.settle()
        self._late = (step, update, parts, scale_before)
        if not update.is_late:
            self.settle()

    def settle(self) -> None:
        """Look at a step that is still to be looked at; as `look`."""
        if self._late is None:
            return
        (step, update, parts, scale_before), self._late = self._late, None
        if update.skipped:
            self._explain(step, parts, scale_before)
        else:
            self.in_a_row = 0

    def _explain(self, step: int, parts: Sequence[Part], scale_before: float | None) -> None:
        """Say and write down why `step` was skipped.

        A skip that only lowers a dynamic loss scale is how DeepSpeed searches it: said, but not
        counted.
        """
        mine = (self._rows(parts, bad_only=True), self._rows(parts, bad_only=False))
        everyones: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, mine)
        bad, drawn = (_merged([rank[i] for rank in everyones]) for i in (0, 1))
        scale = _scale_change(self.engine, scale_before)
        if not bad and scale and scale_before > self.engine.optimizer.loss_scaler.min_scale:
            self.say(f"step {step} skipped: gradient beyond fp16's range; {scale}")
            return
        reason, examples = ("loss", bad) if bad else ("gradient", drawn)
        told = f"loss of {_told(bad)}" if bad else f"gradient; examples {_told(drawn)}"
        self.say(f"step {step} skipped: non-finite {told}" + (f"; {scale}" if scale else ""))
        if self.lines is not None:
            self.lines.write({"step": step, "reason": reason, "examples": examples})
        self.in_a_row += 1
        if self.in_a_row > self.max_in_a_row:
            raise Diverged(
                f"{self.in_a_row} steps in a row (up to {step}) were skipped for non-finite losses "
                f"or gradients, more than train.max_skipped = {self.max_in_a_row}: "
                f"{self.folder / 'skipped.jsonl'} names their examples; where they are all kinds "
                f"of examples the weights themselves have diverged, which never heals: start anew "
                f"with a smaller train.lr, a longer train.warmup or train.clip"
            )

    def _rows(self, parts: Sequence[Part], bad_only: bool) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for losses_B, batch in parts:
            bad_B = ~torch.isfinite(losses_B.detach() * batch.weights_B)
            chosen = bad_B.nonzero()[:, 0].tolist() if bad_only else range(batch.num_sequences)
            tasks, ids = batch.task_ids_B.tolist(), batch.example_ids_B.tolist()
            for i in chosen:
                rows.setdefault(self.tasks[tasks[i]], []).append(ids[i])
        return rows


def loss_scale(engine) -> float | None:
    """Return fp16's loss scale, None in other precisions."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


def _scale_change(engine, before: float | None) -> str:
    """Return what a skip did to a dynamic loss scale, "" where there is none."""
    if before is None or not engine.optimizer.dynamic_loss_scale:
        return ""
    after = loss_scale(engine)
    if after == before:
        return f"loss scale {before:g} stays"  # hysteresis, or the least scale
    return f"loss scale {before:g} -> {after:g}"


def _merged(ranks: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Return all ranks' rows by task, in order."""
    tasks = sorted({task for rows in ranks for task in rows})
    return {task: sorted(i for rows in ranks for i in rows.get(task, [])) for task in tasks}


def _told(examples: dict[str, list[int]]) -> str:
    parts = []
    for task, rows in examples.items():
        shown = ", ".join(map(str, rows[:NAMED]))
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        parts.append(f"{task} {shown}{more}")
    return "; ".join(parts)
