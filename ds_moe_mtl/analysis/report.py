"""A run's course as one picture: losses, dev scores, learning rate and norm, expert load.

S logged steps, L layers, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_moe_mtl.config.files import whole_file


@dataclass(frozen=True)
class Course:
    """What metrics.jsonl says of a run; a series is (steps, values).

    loads_SLE: each expert's share of its layer's tokens, None for a dense model.
    """

    title: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]
    load_steps: np.ndarray
    loads_SLE: np.ndarray | None

    def named(self, prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the series whose keys begin so, without that beginning."""
        return {
            key.removeprefix(prefix): value
            for key, value in self.series.items()
            if key.startswith(prefix)
        }

    @property
    def last_step(self) -> int:
        """The last step that was logged, 0 of none."""
        steps = [int(found[-1]) for found, _ in self.series.values()]
        return max([*steps, *map(int, self.load_steps[-1:])], default=0)

    def balance(self) -> dict | None:
        """Return how evenly the last logged loads lie: their largest and least share, percent.

        "largest" and "least" over all layers; "entropy": the mean over layers of the loads'
        entropy, 1 = even. None for a dense model.
        """
        if self.loads_SLE is None:
            return None
        last_LE = self.loads_SLE[-1]
        entropy_L = -(last_LE * np.log(np.clip(last_LE, 1e-12, None))).sum(axis=1)
        return {
            "step": int(self.load_steps[-1]),
            "largest": round(100 * float(last_LE.max()), 1),
            "least": round(100 * float(last_LE.min()), 1),
            "entropy": round(float(entropy_L.mean() / np.log(max(last_LE.shape[1], 2))), 3),
        }


def read_course(rows: Sequence[dict], title: str) -> Course:
    """Return the course that the rows of a metrics.jsonl tell."""
    points: dict[str, list[tuple[int, float]]] = {}
    loads: dict[int, dict[tuple[int, int], float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("load/"):
                layer, expert = map(int, key.split("/")[1:])
                loads.setdefault(row["step"], {})[layer, expert] = value
            elif key != "step":
                points.setdefault(key, []).append((row["step"], value))
    series = {
        key: (np.array([s for s, _ in pairs]), np.array([v for _, v in pairs]))
        for key, pairs in points.items()
    }
    if not loads:
        return Course(title, series, np.zeros(0, dtype=int), None)
    newest = loads[max(loads)]  # a run of before counted from 1; its rows are then another course
    loads = {step: at for step, at in loads.items() if at.keys() == newest.keys()}
    layers, experts = (sorted({key[part] for key in newest}) for part in (0, 1))
    loads_SLE = np.array(
        [[[at[layer, e] for e in experts] for layer in layers] for at in loads.values()]
    )
    return Course(title, series, np.array(list(loads)), loads_SLE)


MOST_NAMED = 12
"""Curves that a legend names; of more each is a thin line, and their mean a thick one."""


def draw_report(course: Course, path: Path, numbers: Sequence[int] | None = None) -> None:
    """Write a PNG: the course's curves, and below them a panel a layer of expert loads.

    numbers: of the layers with experts, from 0; None: they are counted.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = 0 if course.loads_SLE is None else course.loads_SLE.shape[1]
    columns = 3
    rows = -(-layers // columns)
    figure = pyplot.figure(figsize=(12, 3.4 + 2.0 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.6, *[1] * rows])
    _curves(figure.add_subplot(grid[0, 0]), course.named("loss/"), "training loss", "loss a task")
    if "loss" in course.series:
        dot = _dot(course.series["loss"])
        black = {"color": "black", "linewidth": 1.6, "label": "all"}
        figure.axes[0].plot(*course.series["loss"], marker=dot, **black)
        figure.axes[0].legend(fontsize=7)
    _curves(figure.add_subplot(grid[0, 1]), course.named("dev/"), "dev score", "percent", "o")
    _pace(figure.add_subplot(grid[0, 2]), course)
    for layer in range(layers):
        axis = figure.add_subplot(grid[1 + layer // columns, layer % columns])
        shares_ES = 100 * course.loads_SLE[:, layer].T
        steps = course.load_steps
        if len(steps) == 1:  # an area has two ends
            steps, shares_ES = steps[[0, 0]] + np.array([-0.5, 0.5]), shares_ES.repeat(2, axis=1)
        axis.stackplot(
            steps,
            shares_ES,
            labels=[f"expert {e}" for e in range(len(shares_ES))],
            colors=pyplot.get_cmap("viridis")(np.linspace(0.1, 0.95, len(shares_ES))),
        )
        number = layer if numbers is None else numbers[layer]
        axis.set_title(f"layer {number}", fontsize=9)
        axis.set_ylim(0, 100)
        axis.margins(x=0)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step", fontsize=8)
        if layer % columns == 0:
            axis.set_ylabel("% of tokens", fontsize=8)
        if layer == 0:
            axis.legend(fontsize=6, loc="upper right", ncols=2)
    figure.suptitle(course.title, fontsize=11)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110)
    pyplot.close(figure)


def _curves(axis, series: dict, title: str, unit: str, marker: str = "") -> None:
    if len(series) > MOST_NAMED:
        series = _many(axis, series)
    for name, (steps, values) in series.items():
        dot = marker or _dot((steps, values))
        axis.plot(steps, values, label=_short(name), linewidth=1, marker=dot, markersize=3)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.tick_params(labelsize=7)
    if series:
        axis.legend(fontsize=7)
    else:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes)


def _many(axis, series: dict) -> dict:
    """Draw many curves as thin lines, and return their mean by its name."""
    by_step: dict[int, list[float]] = {}
    for place, (steps, values) in enumerate(series.values()):
        label = f"each of {len(series)} tasks" if place == 0 else None
        axis.plot(steps, values, label=label, linewidth=0.5, color="0.6", alpha=0.6)
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            by_step.setdefault(step, []).append(value)
    means = [float(np.mean(by_step[step])) for step in sorted(by_step)]
    return {"their mean": (np.array(sorted(by_step)), np.array(means))}


def _dot(series: tuple[np.ndarray, np.ndarray]) -> str:
    """Return the marker of a curve, which has none unless it is a single point."""
    return "o" if len(series[0]) == 1 else ""


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _pace(axis, course: Course) -> None:
    """Draw the gradient's norm, and the learning rate on an axis of its own."""
    norm = course.named("grad_norm")
    _curves(axis, {"norm": norm[""]} if norm else {}, "gradient norm and learning rate", "norm")
    if "lr" in course.series:
        other = axis.twinx()
        rate = course.series["lr"]
        other.plot(*rate, color="tab:red", linewidth=1, marker=_dot(rate))
        other.set_ylabel("learning rate", fontsize=8, color="tab:red")
        other.tick_params(labelsize=7)
        other.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
