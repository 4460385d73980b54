"""The page's charts as inline SVG: curves, shares over time, intervals, points, trees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ds_moe_mtl.analysis.page.scores import Estimate
from ds_moe_mtl.analysis.page.similarity import Similarity
from ds_moe_mtl.analysis.page.svg import SLOTS, TOP, Drawing, axis, frame

PANEL = (300, 168)
"""Width and height of one of many small charts, in pixels."""


@dataclass(frozen=True)
class Line:
    """One curve. slot: its colour. smooth: the line that is drawn over the raw one, or None."""

    name: str
    slot: int
    steps: np.ndarray
    values: np.ndarray
    smooth: np.ndarray | None = None
    marked: bool = False  # each value as a point


def curves(title: str, lines: Sequence[Line]) -> Markup:
    """Return curves over steps."""
    drawing = Drawing(*PANEL, title)
    steps = np.concatenate([line.steps for line in lines])
    drawn = [each for line in lines for each in (line.values, line.smooth) if each is not None]
    values = np.concatenate(drawn)
    across = axis(steps, 48, PANEL[0] - 16, whole=True)
    up = axis(values, PANEL[1] - 24, 8)
    frame(drawing, across, up)
    for line in lines:
        kind = f"s{line.slot % SLOTS}"
        points = [(across.at(s), up.at(v)) for s, v in zip(line.steps, line.values, strict=True)]
        if len(points) > 1:
            drawing.path(points, f"{kind} {'line' if line.smooth is None else 'raw'}")
        if line.smooth is not None and len(points) > 1:
            drawing.path(
                [(across.at(s), up.at(v)) for s, v in zip(line.steps, line.smooth, strict=True)],
                f"{kind} line",
            )
        if line.marked or len(points) == 1:
            for (x, y), step, value in zip(points, line.steps, line.values, strict=True):
                drawing.dot(x, y, f"{kind} fill", f"{line.name}, step {step}: {value:.4g}")
    return drawing.markup()


def shares(title: str, steps: np.ndarray, shares_SE: np.ndarray) -> Markup:
    """Return what each of up to SLOTS parts has of a whole over steps, one on the other."""
    drawing = Drawing(*PANEL, title)
    across, up = axis(steps, 48, PANEL[0] - 16, whole=True), axis((0, 100), PANEL[1] - 24, 8)
    frame(drawing, across, up)
    xs = [across.at(step) for step in steps] if len(steps) > 1 else [across.start, across.end]
    edges_SE = (
        100 * np.cumsum(shares_SE, axis=1) / np.maximum(shares_SE.sum(1, keepdims=True), 1e-9)
    )
    edges_SE = np.concatenate([np.zeros((len(edges_SE), 1)), edges_SE], axis=1)
    if len(steps) == 1:
        edges_SE = edges_SE.repeat(2, axis=0)
    for part in range(shares_SE.shape[1]):
        ys = [[up.at(value) for value in edges_SE[:, part + side]] for side in (0, 1)]
        forth, back = zip(xs, ys[0], strict=True), zip(xs, ys[1], strict=True)
        drawing.path([*forth, *reversed([*back])], f"s{part} area", closed=True)
    return drawing.markup()


def intervals(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[int, str, Estimate]]]], zero: bool
) -> Markup:
    """Return rows of estimates with their intervals; a row: (name, [(slot, run, estimate)]).

    zero: they are differences, and 0 is drawn.
    """
    per_row = max((len(estimates) for _, estimates in rows), default=1)
    height, left, width = 10 * per_row + 10, 210, 720
    drawing = Drawing(width, height * len(rows) + TOP + 26, title)
    found = [one for _, estimates in rows for _, _, one in estimates]
    ends = [v for one in found for v in (one.value, one.low, one.high) if v is not None]
    across = axis([*ends, *([0.0] if zero else [])], left, width - 14, ticks=8)
    frame(drawing, across, None)
    if zero:
        drawing.line(across.at(0), TOP, across.at(0), drawing.height - 22, "zero")
    for number, (name, estimates) in enumerate(rows):
        middle = TOP + height * (number + 0.5)
        drawing.text(left - 10, middle + 4, name, "name end", room=left - 14)
        for place, (slot, run, one) in enumerate(estimates):
            y = middle + 10 * (place - (len(estimates) - 1) / 2)
            if one.low is not None:
                drawing.line(across.at(one.low), y, across.at(one.high), y, f"s{slot} bar")
            drawing.dot(
                across.at(one.value), y, f"s{slot} fill", f"{run}, {name}: {_said(one, zero)}", 3.4
            )
    return drawing.markup()


def points(title: str, right_U: np.ndarray, given_U: np.ndarray, most: int = 600) -> Markup:
    """Return given numbers over right ones, and the line on which they are equal."""
    chosen = np.linspace(0, len(right_U) - 1, min(most, len(right_U))).round().astype(int)
    drawing = Drawing(320, 260, title)
    across = axis(right_U, 52, 308)
    up = axis(given_U, 260 - 38, 8)
    frame(drawing, across, up)
    low, high = max(across.low, up.low), min(across.high, up.high)
    if low < high:
        drawing.line(across.at(low), up.at(low), across.at(high), up.at(high), "zero")
    for x, y in zip(right_U[chosen], given_U[chosen], strict=True):
        drawing.dot(across.at(x), up.at(y), "s0 point", radius=2.2)
    drawing.text(180, 256, "right (across), given (up)", "middle")
    return drawing.markup()


def tree(title: str, similarity: Similarity) -> Markup:
    """Return the tree that joins the nearest tasks first; distances grow to the right."""
    tasks, height, left, width = len(similarity.tasks), 18, 210, 600
    drawing = Drawing(width, height * tasks + TOP + 26, title)
    far = float(similarity.merges[:, 2].max()) if len(similarity.merges) else 0.0
    across = axis((0.0, max(far, 1e-6)), left, width - 14)
    frame(drawing, across, None)
    heads = {}
    for row, task in enumerate(similarity.order):
        y = TOP + height * (row + 0.5)
        drawing.text(left - 10, y + 4, similarity.tasks[task], "name end", room=left - 14)
        heads[task] = (across.at(0), y)
    for number, (one, other, distance, _) in enumerate(similarity.merges):
        x = across.at(distance)
        (x1, y1), (x2, y2) = heads[int(one)], heads[int(other)]
        drawing.path([(x1, y1), (x, y1), (x, y2), (x2, y2)], "branch")
        heads[tasks + number] = (x, (y1 + y2) / 2)
    return drawing.markup()


def _said(one: Estimate, signed: bool) -> str:
    """Return an estimate and its interval in words."""
    form = "+.1f" if signed else ".1f"
    shown = format(one.value, form)
    return shown if one.low is None else f"{shown} ({one.low:{form}} to {one.high:{form}})"
