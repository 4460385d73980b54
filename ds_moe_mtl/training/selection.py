"""Which step's model a run keeps: the one best by dev scores or losses, and when to stop looking.

best/step_00000100/    a model folder; the newest best, and the best of the newest checkpoint

Source: "Sparsely Activated MoE are Robust Multi-Task Learners", appendix A.3.2: fine-tuning stops
early by the dev set, mixture training does not. The slides of Ye, Zha and Ren: dev loss and dev
performance disagree; they select by performance.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import distributed as dist

from ds_moe_mtl.models.description import read_description
from ds_moe_mtl.tracking.metrics_log import read_metrics

BEST = "best"


class Selection:
    """The evaluations of one run so far. Every rank has the same; files are rank 0's."""

    def __init__(
        self,
        folder: Path,
        first_step: int,
        patience: int,
        write: Callable[[Path, dict], None],
        criterion: str = "dev_score",
    ) -> None:
        """Go on after `first_step` steps; a collective call.

        folder: the run's. patience: evaluations without a better one that end the run (0: none).
        write(path, results): writes the model as it is now, a collective call. criterion:
        dev_score, the mean over tasks, higher is better; dev_loss, lower is.
        """
        self.folder, self.patience, self._write = folder, patience, write
        self._criterion = criterion
        self._scores: list[tuple[int, float]] = []
        self.best_step, self.results = 0, None
        answer = [None]
        if dist.get_rank() == 0 and first_step:
            answer = [self._read(first_step)]
        dist.broadcast_object_list(answer, src=0)
        if answer[0] is not None:
            self._scores, self.best_step, self.results = answer[0]

    @property
    def best(self) -> Path:
        """The folder of the best model so far."""
        return self.folder / BEST / f"step_{self.best_step:08d}"

    @property
    def exhausted(self) -> bool:
        """True where `patience` evaluations in a row were no better than the best."""
        since = sum(step > self.best_step for step, _ in self._scores)
        return 0 < self.patience <= since

    def offer(
        self, step: int, results: Mapping[str, dict], losses: Mapping[str, float] | None = None
    ) -> None:
        """Keep the model if it is better than all before it; a collective call.

        losses: each task's mean dev loss; read by dev_loss.
        """
        if self._criterion == "dev_loss":
            score = -sum(losses.values()) / len(losses)
        else:
            score = mean_score(results)
        top = max((value for _, value in self._scores), default=None)
        self._scores.append((step, score))
        if top is None or score > top:
            self.best_step, self.results = step, dict(results)
            self._write(self.best, self.results)

    def checkpointed(self) -> None:
        """Drop the models that no checkpoint needs any more: all but the best."""
        if dist.get_rank() == 0:
            for folder in (self.folder / BEST).glob("step_*"):
                if folder != self.best:
                    shutil.rmtree(folder)

    def finish(self, model: Path) -> None:
        """Make the best model the run's; a collective call."""
        if dist.get_rank() == 0:
            if self.best.exists():  # else it was made so before the run was killed
                shutil.rmtree(model, ignore_errors=True)
                self.best.rename(model)
            shutil.rmtree(self.folder / BEST, ignore_errors=True)
        dist.barrier()

    def _read(self, first_step: int) -> tuple[list[tuple[int, float]], int, dict | None]:
        """Return what was evaluated up to a checkpoint's step; what lies beyond it is dropped."""
        scores = []
        prefix, sign = {"dev_score": ("dev/", 1), "dev_loss": ("dev_loss/", -1)}[self._criterion]
        for row in read_metrics(self.folder / "metrics.jsonl"):
            values = [value for key, value in row.items() if key.startswith(prefix)]
            if values and row["step"] <= first_step:
                scores.append((row["step"], sign * sum(values) / len(values)))
        if not scores:
            return [], 0, None
        top = max(value for _, value in scores)
        self.best_step = next(step for step, value in scores if value == top)
        for folder in (self.folder / BEST).glob("step_*"):
            if int(folder.name.split("_")[1]) > first_step:
                shutil.rmtree(folder)
        best = self.best if self.best.exists() else self.folder / "model"
        return scores, self.best_step, read_description(best)["about"]["results"]


def mean_score(results: Mapping[str, dict]) -> float:
    """Return the mean over tasks of dev results, what models are compared by."""
    return sum(result["value"] for result in results.values()) / len(results)
