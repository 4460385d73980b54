"""A run's course as one picture: losses, dev scores, learning rate and norm, expert load.

S logged steps, L layers, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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


def draw_report(course: Course, path: Path) -> None:
    """Write a PNG: the course's curves, and below them a panel a layer of expert loads."""
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
        figure.axes[0].plot(*course.series["loss"], color="black", linewidth=1.6, label="all")
        figure.axes[0].legend(fontsize=7)
    _curves(figure.add_subplot(grid[0, 1]), course.named("dev/"), "dev score", "percent", "o")
    _pace(figure.add_subplot(grid[0, 2]), course)
    for layer in range(layers):
        axis = figure.add_subplot(grid[1 + layer // columns, layer % columns])
        shares_ES = 100 * course.loads_SLE[:, layer].T
        axis.stackplot(
            course.load_steps,
            shares_ES,
            labels=[f"expert {e}" for e in range(len(shares_ES))],
            colors=pyplot.get_cmap("viridis")(np.linspace(0.1, 0.95, len(shares_ES))),
        )
        axis.set_title(f"layer {layer}", fontsize=9)
        axis.set_ylim(0, 100)
        axis.margins(x=0)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step", fontsize=8)
        if layer % columns == 0:
            axis.set_ylabel("% of tokens", fontsize=8)
        if layer == 0:
            axis.legend(fontsize=6, loc="upper right", ncols=2)
    figure.suptitle(course.title, fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _curves(axis, series: dict, title: str, unit: str, marker: str = "") -> None:
    for name, (steps, values) in series.items():
        axis.plot(steps, values, label=name, linewidth=1, marker=marker, markersize=3)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.tick_params(labelsize=7)
    if series:
        axis.legend(fontsize=7)
    else:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes)


def _pace(axis, course: Course) -> None:
    """Draw the gradient's norm, and the learning rate on an axis of its own."""
    norm = course.named("grad_norm")
    _curves(axis, {"norm": norm[""]} if norm else {}, "gradient norm and learning rate", "norm")
    if "lr" in course.series:
        other = axis.twinx()
        other.plot(*course.series["lr"], color="tab:red", linewidth=1)
        other.set_ylabel("learning rate", fontsize=8, color="tab:red")
        other.tick_params(labelsize=7)
        other.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
