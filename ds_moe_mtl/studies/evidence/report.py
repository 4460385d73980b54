"""What a study's lines say, as Markdown and pictures; made from the lines and nothing else:
a page, a picture of the differences and one of the scores, beside the lines.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import write_text
from ds_moe_mtl.evaluation.bootstrap import Interval
from ds_moe_mtl.studies.compare import (
    Comparison,
    ScoredRun,
    by_seed,
    compare_runs,
    complete,
    mean_interval,
    runs_of_lines,
)
from ds_moe_mtl.studies.evidence.groups import groups_of, joined_by_task, of_newest_study
from ds_moe_mtl.studies.forest import Mark, draw_forest
from ds_moe_mtl.studies.lines import Evidence, read_evidence
from ds_moe_mtl.studies.points import point_name

CLAIMED = 1.0
"""Points: a smaller mean difference is no claim, and a task that loses more speaks against one."""


@dataclass(frozen=True)
class System:
    """One system on the tasks of a stage: a point, a run per seed, and what they come to.

    runs: those that have all tasks. partial: the others, which count in no mean over tasks.
    left_out: what they and failed runs lack, in words. comparison: against the baseline; None for
    the baseline and where no seed pairs.
    """

    name: str
    point: str
    runs: tuple[ScoredRun, ...]
    partial: tuple[ScoredRun, ...]
    left_out: tuple[str, ...]
    mean: Interval | None
    comparison: Comparison | None

    @property
    def values(self) -> list[float]:
        """The mean score of each seed."""
        return [statistics.fmean(run.values.values()) for run in self.runs]


def write_report(path: Path) -> list[Path]:
    """Write a study's page and pictures beside its lines and return their paths.

    Raises UserError for a file without lines.
    """
    evidence = read_evidence(path)
    lines = of_newest_study(evidence.runs)
    if not lines:
        raise UserError(f"{path}: no lines of finished runs")
    baseline = lines[-1]["baseline"]
    groups = groups_of(lines)
    grids = [key for key in groups if groups[key][-1]["grid"]]
    apart = {key: group for key, group in groups.items() if key not in grids}
    scored = {
        key: _systems(evidence, group, baseline)
        for key, group in joined_by_task(apart, baseline).items()
    }
    page = path.with_suffix(".md")
    pictures = _draw(path, scored, baseline)
    text = [f"# {lines[-1]['study']}: what {len(lines)} runs say", ""]
    text += _about(lines, evidence, baseline)
    for picture in pictures:
        text += [f"![{picture.stem}]({picture.name})", ""]
    for (stage, data), systems in scored.items():
        text += [f"## {stage}, {data}", "", *_score_table(systems), ""]
        text += _difference_table(systems, baseline)
        text += _seed_table(systems)
    for key in grids:
        text += [f"## {key[0]}, {key[1]}: the grid", "", *_grid_table(groups[key]), ""]
    write_text(page, "\n".join(text).rstrip() + "\n")
    return [page, *pictures]


def _systems(evidence: Evidence, lines: Sequence[Mapping], baseline: str) -> list[System]:
    """Return a stage's systems on the same tasks, the best mean first, failures last."""
    by_name: dict[str, list[Mapping]] = {}
    for line in lines:
        by_name.setdefault(line["system"], []).append(line)
    tasks = {task for line in lines for task in line["tasks"]}
    runs, partial, left_out = {}, {}, {}
    for name, own in by_name.items():
        found = by_seed(runs_of_lines(evidence, own), name)
        whole = complete(found, tasks)
        runs[name] = list(whole.values())
        partial[name] = [run for seed, run in found.items() if seed not in whole]
        left_out[name] = [
            *(f"{line['run']}: {line['failure']}" for line in own if line["failure"]),
            *(
                f"{name}, seed {run.seed}, counts in no mean: there is no run of "
                f"{', '.join(sorted(tasks - run.values.keys()))}"
                for run in partial[name]
            ),
        ]
    systems = []
    for name, own in by_name.items():
        comparison = None
        seeds = {run.seed for run in runs[name]} & {run.seed for run in runs.get(baseline, [])}
        if name != baseline and seeds:
            comparison = compare_runs(runs[name], runs[baseline], (name, baseline))
        systems.append(
            System(
                name,
                _point_of(own),
                tuple(runs[name]),
                tuple(partial[name]),
                tuple(left_out[name]),
                mean_interval(runs[name]) if runs[name] else None,
                comparison,
            )
        )
    return sorted(systems, key=lambda one: -one.mean.value if one.mean else float("inf"))


def _point_of(lines: Sequence[Mapping]) -> str:
    """Return what tuning chose for a system, by data variant where it chose several."""
    points = {line["data"]: point_name(line["point"]) for line in lines}
    if len(set(points.values())) == 1:
        return next(iter(points.values()))
    return ", ".join(f"{data} {point}" for data, point in points.items())


def _about(lines: Sequence[Mapping], evidence: Evidence, baseline: str) -> list[str]:
    machines = dict.fromkeys(line["machine"] for line in lines if line["machine"])
    commits = dict.fromkeys(line["commit"] for line in lines if line["commit"])
    encoders = dict.fromkeys(line["encoder"]["name"] for line in lines if line["encoder"])
    hours = sum(line["seconds"] or 0 for line in lines) / 3600
    failed = sum(line["failure"] is not None for line in lines)
    older = len(evidence.runs) - len(lines)
    text = [
        f"Scores are means over tasks of dev scores, in percent. Differences are to {baseline}, "
        "over paired seeds. Intervals are of 95%, over seeds and dev rows ([how](README.md)).",
        "",
        f"- Encoder: {', '.join(encoders)}.",
        f"- Run on: {', '.join(machines)}; {hours:.1f} h of runs; sources {', '.join(commits)}.",
    ]
    notes = dict.fromkeys(
        f"stage {line['stage']}: {note}" for line in lines for note in line.get("notes", ())
    )
    text += [f"- {note}" for note in notes]
    if failed:
        text.append(f"- Diverged: {failed} of {len(lines)} runs, counted in no mean.")
    if older:
        text.append(f"- Left out: {older} older lines, of runs made again or with other overrides.")
    return [*text, ""]


def _score_table(systems: Sequence[System]) -> list[str]:
    every = [run for one in systems for run in (*one.runs, *one.partial)]
    tasks = list(dict.fromkeys(task for run in every for task in run.values))
    lines = [
        "| "
        + " | ".join(
            ["system", "at", "seeds", "steps", "mean", "interval", "deviation", "max", *tasks]
        )
        + " |",
        "|---|---|---:|---:|---:|---|---:|---:|" + "---:|" * len(tasks),
    ]
    for one in systems:
        cells = "".join(f" {_mean_of(one, task)} |" for task in tasks)
        if not one.runs:
            lines.append(f"| {one.name} | {one.point} | 0 | " + "- | " * 4 + f"- |{cells}")
            continue
        values = one.values
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        steps = ", ".join(map(str, dict.fromkeys(run.steps for run in one.runs)))
        lines.append(
            f"| {one.name} | {one.point} | {len(values)} | {steps} | {one.mean.value:.2f} | "
            f"{one.mean.low:.1f} to {one.mean.high:.1f} | {spread} | {max(values):.2f} |{cells}"
        )
    left_out = [f"- {what}" for one in systems for what in one.left_out]
    return [*lines, *([""] if left_out else []), *left_out]


def _mean_of(system: System, task: str) -> str:
    """Return a system's mean score of one task over all seeds that have it."""
    values = [run.values[task] for run in (*system.runs, *system.partial) if task in run.values]
    return f"{statistics.fmean(values):.1f}" if values else "-"


def _difference_table(systems: Sequence[System], baseline: str) -> list[str]:
    compared = [one for one in systems if one.comparison is not None]
    if not compared:
        return []
    tasks = [row.name for row in compared[0].comparison.tasks]
    sizes = [f"{row.examples:,} dev rows" for row in compared[0].comparison.tasks]
    lines = [
        f"Less {baseline}, the intervals of single tasks for each by itself:",
        "",
        "| system | seeds | mean | what it shows | " + " | ".join(tasks) + " |",
        "|---|---:|---|---|" + "---|" * len(tasks),
        "| | | | | " + " | ".join(sizes) + " |",
    ]
    notes = {}
    for one in compared:
        rows = {row.name: row.difference for row in one.comparison.tasks}
        mean = one.comparison.mean.difference
        lines.append(
            f"| {one.name} | {len(one.comparison.seeds)} | {_shown(mean)} | "
            f"{_verdict(mean, rows.values(), len(one.comparison.seeds))} | "
            + " | ".join(_shown(rows[task]) for task in tasks)
            + " |"
        )
        notes |= dict.fromkeys(
            note if note.startswith((one.name, baseline)) else f"{one.name}: {note}"
            for note in one.comparison.notes
        )
    return [*lines, "", *(f"- {note}" for note in notes), *([""] if notes else [])]


def _verdict(mean: Interval, tasks: Iterable[Interval], seeds: int) -> str:
    """Return what differences show, by point 7 of docs/evidence/README.md."""
    if seeds == 1:
        return "one seed, no claim"
    if not mean.excludes_zero:
        return "no difference shown"
    if mean.value < 0:
        return "worse"
    if mean.value < CLAIMED:
        return f"above 0, but by less than {CLAIMED:.1f}"
    lost = any(task.excludes_zero and task.value < -CLAIMED for task in tasks)
    return "above 0, but a task is worse" if lost else "better"


def _seed_table(systems: Sequence[System]) -> list[str]:
    """Return every run's mean over tasks, seed by seed."""
    means = {
        one.name: {run.seed: value for run, value in zip(one.runs, one.values, strict=True)}
        for one in systems
    }
    seeds = sorted({seed for of in means.values() for seed in of})
    if len(seeds) < 2:
        return []
    lines = ["| mean of seed | " + " | ".join(map(str, seeds)) + " |"]
    lines.append("|---|" + "---:|" * len(seeds))
    for name, of in means.items():
        cells = (f"{of[seed]:.1f}" if seed in of else "-" for seed in seeds)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _grid_table(lines: Sequence[Mapping]) -> list[str]:
    """Return the mean score of each system at each point; the best is bold, at an end marked."""
    points = sorted({tuple(line["point"]) for line in lines}, key=_by_value)
    text = [
        "| system | " + " | ".join(map(point_name, points)) + " |",
        "|---|" + "---:|" * len(points),
    ]
    ends = False
    for system in dict.fromkeys(line["system"] for line in lines):
        means = {}
        for point in points:
            values = [
                line["mean"] if line["mean"] is not None else float("-inf")
                for line in lines
                if (line["system"], tuple(line["point"])) == (system, point)
            ]
            if values:
                means[point] = statistics.fmean(values)
        best = max(means, key=means.get)
        at_end = len(points) > 2 and best in (points[0], points[-1])
        ends = ends or at_end
        shown = {
            point: "diverged" if value == float("-inf") else f"{value:.2f}"
            for point, value in means.items()
        }
        shown[best] = f"**{shown[best]}**{' (end)' * at_end}"
        text.append(f"| {system} | " + " | ".join(shown.get(p, "-") for p in points) + " |")
    return [*text, *(["", "(end): the best rate is at an end of the grid."] if ends else [])]


def _by_value(point: tuple[str, ...]) -> list[tuple[str, float, str]]:
    """Sort points of a grid by their values: runs may end in any order."""
    parts = [item.partition("=") for item in point]
    return [(key, *_number(value)) for key, _, value in parts]


def _number(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _draw(path: Path, scored: Mapping, baseline: str) -> list[Path]:
    """Draw differences and scores, a panel per stage and data variant; return the paths."""
    differences, scores = {}, {}
    for (stage, data), systems in scored.items():
        title = f"{stage}, {data}"
        compared = [one for one in systems if one.comparison is not None]
        if compared:
            differences[title] = [
                Mark(
                    f"{one.name} ({len(one.comparison.seeds)})",
                    one.comparison.mean.difference,
                    one.comparison.mean.difference.excludes_zero and len(one.comparison.seeds) > 1,
                )
                for one in compared
            ]
        scores[title] = [
            Mark(f"{one.name} ({len(one.values)})", one.mean, one.name == baseline)
            for one in systems
            if one.mean is not None
        ]
    pictures = []
    for name, panels, axis, zero in (
        ("differences", differences, f"mean dev score less {baseline}'s, points", True),
        ("scores", {k: v for k, v in scores.items() if v}, "mean dev score, percent", False),
    ):
        if panels:
            pictures.append(path.with_name(f"{path.stem}_{name}.png"))
            what = f"{axis}; 95% intervals; in brackets: seeds"
            draw_forest(panels, pictures[-1], what, zero)
    return pictures


def _shown(gap: Interval) -> str:
    text = f"{gap.value:+.2f} ({gap.low:+.2f}, {gap.high:+.2f})"
    return f"**{text}**" if gap.excludes_zero else text
