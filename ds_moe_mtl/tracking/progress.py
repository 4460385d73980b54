"""The line that a person reads of a running training, and the time that is left of it."""

import statistics
import time
from collections import deque
from collections.abc import Mapping

WINDOWS = 20
"""Logged rows whose median pace is taken for that of the steps to come."""

MOST_NAMED = 16
"""Tasks that a printed line names one by one; the metrics file always has all."""


class Clock:
    """Tells how long a run still takes: the median pace of its last rows, and its evaluations.

    A row that was slow (the first steps compile, a disk was busy) moves no median.
    """

    def __init__(self, total_steps: int, eval_every: int) -> None:
        """eval_every: steps between two evaluations; 0: only at the end."""
        self.total, self.every = total_steps, eval_every
        self._paces: deque[float] = deque(maxlen=WINDOWS)
        self._evaluation = 0.0
        self._since = time.perf_counter()

    def step_ends(self) -> None:
        """Note that a step is done; what follows may be an evaluation."""
        self._since = time.perf_counter()

    def evaluated(self) -> None:
        """Note that since the last step an evaluation was made."""
        self._evaluation = time.perf_counter() - self._since

    def left(self, step: int, steps_per_s: float) -> float:
        """Return the seconds that are left after so many steps, of a row of that pace."""
        self._paces.append(1 / steps_per_s)
        pauses = self.total // self.every - step // self.every if self.every else 0
        pauses += not self.every or self.total % self.every > 0
        return (self.total - step) * statistics.median(self._paces) + pauses * self._evaluation


def progress_line(row: Mapping, total: int, seconds_left: float) -> str:
    """Return a logged row in words: step of so many, losses, rate, speed, time left."""
    by_task = [f"{key[5:]} {value:.3f}" for key, value in row.items() if key.startswith("loss/")]
    losses = " ".join(by_task) if len(by_task) <= MOST_NAMED else f"{len(by_task)} tasks"
    loss = f"loss {row['loss']:.3f} ({losses})" if "loss" in row else "no loss"
    norm = f"  norm {row['grad_norm']:.2f}" if "grad_norm" in row else ""
    skipped = f"  {row['skipped']} skipped" if "skipped" in row else ""
    left = int(seconds_left)
    clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    return (
        f"step {row['step']:>{len(str(total))}}/{total}  {loss}  "
        f"lr {row['lr']:.1e}{norm}  {row['examples_per_s']:.0f} ex/s "
        f"{row['tokens_per_s']:,.0f} tok/s  wait {100 * row['stall']:.1f}%{skipped}  {clock} left"
    )


def scores_line(step: int, values: Mapping[str, float]) -> str:
    """Return an evaluation in words: each task's score, or their mean where they are many."""
    scores = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
    if len(values) > MOST_NAMED:
        scores = f"mean {sum(values.values()) / len(values):.2f} over {len(values)} tasks"
    return f"step {step}: dev  {scores}"
