"""Differences and scores with their intervals as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config.files import whole_file
from ds_moe_mtl.evaluation.bootstrap import Interval
from ds_moe_mtl.studies.compare import Comparison


@dataclass(frozen=True)
class Mark:
    """One line of a picture: a value with its interval. bold: what the picture is about."""

    label: str
    interval: Interval
    bold: bool = False


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Write a PNG: a line per task and one for the mean, left less right."""
    rows = [Mark(row.name, row.difference) for row in comparison.tasks]
    rows.append(Mark("mean", comparison.mean.difference, bold=True))
    seeds = f"{len(comparison.seeds)} paired seed" + "s" * (len(comparison.seeds) > 1)
    title = f"{comparison.left} less {comparison.right}, {seeds}"
    draw_forest({title: rows}, path, "difference of dev scores, points; 95% intervals", zero=True)


def draw_forest(
    panels: dict[str, Sequence[Mark]], path: Path, axis_title: str, zero: bool = False
) -> None:
    """Write a PNG with a panel under another, a line per mark, all on one axis.

    zero: draw the line of no difference, and colour marks by the side of it that they are on.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [len(marks) for marks in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(8.0, 1.0 + 0.34 * sum(sizes) + 0.55 * len(panels)),
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [size + 0.6 for size in sizes]},
        layout="constrained",
    )
    for axis, (title, marks) in zip(axes[:, 0], panels.items(), strict=True):
        for place, mark in enumerate(marks):
            _draw_mark(axis, place, mark, zero)
        axis.set_yticks(range(len(marks)), [mark.label for mark in marks])
        for label, mark in zip(axis.get_yticklabels(), marks, strict=True):
            label.set_fontweight("bold" if mark.bold else "normal")
        axis.set_ylim(len(marks) - 0.4, -0.6)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        if zero:
            axis.axvline(0, color="0.3", linewidth=1)
    axes[-1, 0].set_xlabel(axis_title)
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)
    pyplot.close(figure)


def _draw_mark(axis, place: int, mark: Mark, zero: bool) -> None:
    """Draw one interval with its value written beside it; grey where it contains no difference."""
    value = mark.interval
    color = "C0"
    if zero:
        color = ("C2" if value.value > 0 else "C3") if value.excludes_zero else "0.45"
    axis.plot(
        [value.low, value.high], [place, place], color=color, linewidth=2.4 if mark.bold else 1.5
    )
    axis.plot(
        value.value, place, "D" if mark.bold else "o", color=color, markersize=7 if mark.bold else 5
    )
    text = (
        f"{value.value:+.1f} ({value.low:+.1f}, {value.high:+.1f})"
        if zero
        else (f"{value.value:.1f} ({value.low:.1f}, {value.high:.1f})")
    )
    axis.annotate(
        text,
        (1.01, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        fontweight="bold" if mark.bold else "normal",
        annotation_clip=False,
    )
