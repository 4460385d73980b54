"""Model selection: the best of the evaluated models is kept, by dev performance or by dev loss.

The slides of Ye, Zha and Ren: dev loss and dev performance disagree; they select by performance.
<run>/best/ is a model folder, <run>/best/selected.json its step, value and scores.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import distributed as dist

from ds_moe_mtl.training.run_folder import read_json, write_json

CHOICE = "selected.json"


class BestModel:
    """Keeps the best model of a run in a folder, also over a resume."""

    def __init__(self, folder: Path, criterion: str, say: Callable[[str], None]) -> None:
        """criterion: dev_score (the mean over tasks, higher is better) or dev_loss (lower is)."""
        self.folder, self.criterion, self._say = folder, criterion, say

    def offer(
        self,
        step: int,
        results: Mapping[str, dict],
        losses: Mapping[str, float],
        write: Callable[[Path], None],
    ) -> None:
        """Write the model of this step where it is better than the best so far; collective.

        write(folder) writes a model folder; it is a collective call too.
        """
        values = [result["value"] for result in results.values()]
        if self.criterion == "dev_loss":
            values = [-losses[name] for name in results]
        value = math.fsum(values) / len(values)
        answer = [False]
        if dist.get_rank() == 0:
            before = self.chosen()
            answer[0] = before is None or value > before["value"]
        dist.broadcast_object_list(answer, src=0)
        if not answer[0]:
            return
        write(self.folder)
        if dist.get_rank() == 0:
            choice = {"step": step, "value": value, "tasks": dict(results)}
            write_json(self.folder / CHOICE, choice)
            self._say(f"step {step}: the best so far by {self.criterion}, {abs(value):.3f}")

    def chosen(self) -> dict | None:
        """Return {"step", "value" (higher is better), "tasks"} of the best model, or None."""
        return read_json(self.folder / CHOICE)

    def move_to(self, model: Path) -> dict:
        """Make the best model the run's model folder and return what was chosen."""
        choice = self.chosen()
        assert choice is not None, "nothing was evaluated"
        if model.exists():
            shutil.rmtree(model)
        shutil.copytree(self.folder, model, ignore=shutil.ignore_patterns(CHOICE))
        return choice
