"""Curves of several runs beside each other, and how a run's expert loads moved.

S logged steps, L layers with experts, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ds_moe_mtl.analysis.page.charts import Line, curves, shares
from ds_moe_mtl.analysis.page.heat import Heat, heat
from ds_moe_mtl.analysis.page.stored import Part, StoredRun
from ds_moe_mtl.analysis.page.svg import SLOTS

MOST_POINTS = 240
"""Points of a drawn line; of more, neighbours are averaged."""

PACE = {
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "tokens_per_s": "tokens per second",
    "examples_per_s": "examples per second",
    "host_memory_gib": "memory of rank 0's process, GiB",
    "gpu_memory_gib": "GPU memory of rank 0, GiB at most",
    "stall": "share of the time that steps waited for data",
    "attention_padding": "share of pads in attention",
    "skipped": "steps skipped",
}
"""Rows of metrics.jsonl that tell how the steps went, and what the page calls them."""


@dataclass(frozen=True)
class Panel:
    """One small chart under a heading."""

    title: str
    chart: Markup


def loss_panels(runs: Sequence[StoredRun], names: Sequence[str]) -> list[Panel]:
    """Return the training loss of all tasks together, then of each task."""
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    whole = _panel("all tasks", "loss", runs, names) if len(tasks) > 1 else None
    most = max(60, min(MOST_POINTS, 9000 // (max(len(tasks), 1) * len(runs))))
    each = [_panel(task, f"loss/{task}", runs, names, most) for task in tasks]
    return [panel for panel in (whole, *each) if panel is not None]


def dev_panels(runs: Sequence[StoredRun], names: Sequence[str]) -> list[Panel]:
    """Return the dev scores of each task over steps; none where each was scored once at most."""
    found = [part.course.named("dev/") for run in runs for part in run.parts if part.course.series]
    if not any(len(steps) > 1 for series in found for steps, _ in series.values()):
        return []
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    panels = [_panel(task, f"dev/{task}", runs, names, marked=True) for task in tasks]
    return [panel for panel in panels if panel is not None]


def pace_panels(runs: Sequence[StoredRun], names: Sequence[str]) -> list[Panel]:
    """Return how the steps went: norm, rate, throughput, memory, waiting."""
    exact = ("lr", "skipped", "host_memory_gib", "gpu_memory_gib")
    panels = [
        _panel(title, key, runs, names, smooth=key not in exact) for key, title in PACE.items()
    ]
    return [panel for panel in panels if panel is not None]


def load_panels(part: Part) -> tuple[list[Panel], str]:
    """Return each layer's expert loads over steps, and a note on the layers' numbers."""
    course = part.course
    if course.loads_SLE is None or course.loads_SLE.shape[2] > SLOTS:
        return [], ""
    layers, note = part.sparse_layers(course.loads_SLE.shape[1])
    steps, loads_SLE = _averaged(course.load_steps, course.loads_SLE, 80)
    return [
        Panel(f"layer {number}", shares(f"expert loads of layer {number}", steps, loads_SLE[:, at]))
        for at, number in enumerate(layers)
    ], note


def drift(part: Part, most: int = 20) -> Heat | None:
    """Return how far each layer's loads were from the last ones: half the sum of differences.

    0: the same loads; 1: all tokens went to other experts. None without loads at two steps.
    """
    course = part.course
    if course.loads_SLE is None or len(course.load_steps) < 2:
        return None
    chosen = np.linspace(0, len(course.load_steps) - 1, min(most, len(course.load_steps)))
    chosen = np.unique(chosen.round().astype(int))
    moved_SL = np.abs(course.loads_SLE - course.loads_SLE[-1]).sum(axis=2)[chosen] / 2
    layers, _ = part.sparse_layers(course.loads_SLE.shape[1])
    return heat(
        "layer",
        [f"layer {number}" for number in layers],
        [f"{course.load_steps[at]:,}" for at in chosen],
        moved_SL.T,
        scale=max(float(moved_SL.max()), 0.05),
        form="{:.2f}",
        across="step",
    )


def smoothed(values: np.ndarray, half_life: float) -> np.ndarray:
    """Return the exponential mean of the values so far, a weight halving every `half_life`."""
    keep = 0.5 ** (1 / half_life)
    total = weight = 0.0
    found = np.empty(len(values))
    for place, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        found[place] = total / weight
    return found


def half_life(logged: int) -> float:
    """Return the half-life of a smooth line in logged rows: a twentieth of them (our choice)."""
    return max(1.0, logged / 20)


def _panel(
    title: str,
    key: str,
    runs: Sequence[StoredRun],
    names: Sequence[str],
    most: int = MOST_POINTS,
    smooth: bool = True,
    marked: bool = False,
) -> Panel | None:
    lines = []
    for slot, (run, name) in enumerate(zip(runs, names, strict=True)):
        for part in run.parts:
            if key not in part.course.series or (key == "loss" and part.name):
                continue
            steps, values = part.course.series[key]
            line = None
            if smooth and not marked:
                line = _averaged(steps, smoothed(values, half_life(len(values))), most)[1]
            steps, values = (steps, values) if marked else _averaged(steps, values, most)
            called = f"{name} / {part.name}" if part.name else name
            lines.append(Line(called, slot, steps, values, line, marked))
    return Panel(title, curves(title, lines)) if lines else None


def _averaged(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `most` points: neighbours averaged, each at the last of their steps."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).round().astype(int)
    sizes = np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))
    return steps[edges[1:] - 1], np.add.reduceat(values, edges[:-1], axis=0) / sizes
