"""Relative gain of few-shot tuning from an upstream model over direct fine-tuning.

Source: Ye, Lin, Ren, "CrossFit" (EMNLP 2021), its average relative gain (ARG); used so by Ye,
Zha and Ren. Scores are in percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from ds_moe_mtl.config.files import whole_file

LEAST_BASE = 1.0
"""Percent; a base below it makes any gain look huge, so its task is left out and counted."""


@dataclass(frozen=True)
class RelativeGains:
    """Gain of each task as a share of its base; excluded: tasks whose base is under LEAST_BASE."""

    by_task: Mapping[str, float]
    excluded: tuple[str, ...]

    @property
    def average(self) -> float:
        """ARG: the mean over the tasks that count; NaN where none does."""
        return fmean(self.by_task.values()) if self.by_task else float("nan")

    @property
    def below_zero(self) -> tuple[str, ...]:
        """Tasks with negative transfer."""
        return tuple(task for task, gain in self.by_task.items() if gain < 0)


def relative_gains(scores: Mapping[str, float], base: Mapping[str, float]) -> RelativeGains:
    """Return (score - base) / base of every task of `scores`.

    Raises ValueError for a task without a base.
    """
    missing = [task for task in scores if task not in base]
    if missing:
        raise ValueError(f"no direct fine-tuning of task {missing[0]!r} to compare with")
    counted = {task: score for task, score in scores.items() if base[task] >= LEAST_BASE}
    return RelativeGains(
        {task: (score - base[task]) / base[task] for task, score in counted.items()},
        tuple(task for task in scores if task not in counted),
    )


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for one value)."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _label(task: str) -> str:
    """Return a task's name in at most 24 letters, its ends kept."""
    name = task.removeprefix("gym-")
    return name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"


def draw_gains(gains: Mapping[str, RelativeGains], path: Path) -> None:
    """Write a PNG: a panel a system, a bar a task, sorted; the title counts tasks below zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = max(len(gain.by_task) for gain in gains.values())
    figure, axes = pyplot.subplots(
        1,
        len(gains),
        figsize=(0.6 + 3.9 * len(gains), 1.6 + 0.27 * tasks),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axis, (system, gain) in zip(axes.flat, gains.items(), strict=True):
        ordered = sorted(gain.by_task.items(), key=lambda item: item[1])
        values = [100 * value for _, value in ordered]
        colours = ["#c44e52" if value < 0 else "#4c72b0" for value in values]
        axis.barh(range(len(values)), values, color=colours)
        axis.set_yticks(range(len(values)), [_label(task) for task, _ in ordered], fontsize=7)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(
            f"{system}\nARG {100 * gain.average:+.1f}%, {len(gain.below_zero)} of "
            f"{len(gain.by_task)} below zero",
            fontsize=9,
        )
        axis.tick_params(axis="x", labelsize=8)
    figure.supxlabel("gain over direct fine-tuning, percent of its score", fontsize=9)
    with whole_file(path) as part:
        figure.savefig(part, dpi=130)
    pyplot.close(figure)
