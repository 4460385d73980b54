"""Two systems' runs, paired by seed: the mean difference of their dev scores, with its interval."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import read_json
from ds_moe_mtl.evaluation.bootstrap import DRAWS, Interval, drawn_scores, interval
from ds_moe_mtl.evaluation.predictions import read_predictions
from ds_moe_mtl.evaluation.units import DevUnits, units_of
from ds_moe_mtl.studies.lines import Evidence, read_evidence

LINES = ".jsonl:"
SEED = 0  # of the draws: the same runs give the same interval


@dataclass(frozen=True)
class ScoredRun:
    """A finished run as far as it is compared: by task its score in percent and its dev rows.

    system: its name in a study, None elsewhere. starts: checksums of the trained models that it
    began with, None for the encoder; one, but for what stands for several runs. parts: how many
    runs of different tasks it stands for.
    """

    name: str
    seed: int
    encoder: str  # checksum of the weights that it started from
    steps: int
    metrics: Mapping[str, str]
    values: Mapping[str, float]
    units: Mapping[str, DevUnits]
    system: str | None = None
    starts: frozenset[str | None] = frozenset([None])
    parts: int = 1


@dataclass(frozen=True)
class Row:
    """One task, or the mean over tasks: both sides' means over seeds, and the difference."""

    name: str
    metric: str
    examples: int  # dev rows or questions of a seed
    left: float
    right: float
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """What came out: left less right. notes: what did not pair, and what the interval is of."""

    left: str
    right: str
    seeds: tuple[int, ...]
    tasks: tuple[Row, ...]
    mean: Row
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        """The comparison as plain JSON values."""
        return asdict(self)


def find_runs(names: Sequence[str]) -> list[ScoredRun]:
    """Return runs by what names them: run folders, or FILE.jsonl:BEGINNING of a study's run names,
    in which * stands for anything.

    Raises UserError for what is neither, and for a run that is not finished.
    """
    found = []
    for name in names:
        path, mark, beginning = name.partition(LINES)
        if not mark:
            found.append(_of_folder(Path(name)))
            continue
        file = Path(path + LINES.rstrip(":"))
        if not file.is_file():
            raise UserError(f"{name}: no such file of lines: {file}")
        evidence = read_evidence(file)
        chosen = [run for run in evidence.runs if _begins(run["run"], beginning)]
        if not chosen:
            raise UserError(f"{name}: no such run among the {len(evidence.runs)} of {file}")
        found += runs_of_lines(evidence, chosen)
    return found


def runs_of_lines(evidence: Evidence, lines: Sequence[Mapping]) -> list[ScoredRun]:
    """Return lines of evidence as runs; of a run that was made twice the newer, failures left out.

    Raises UserError where the file lacks their dev rows.
    """
    newest = {line["run"]: line for line in lines if line["failure"] is None}
    return [
        ScoredRun(
            line["run"],
            line["seed"],
            line["encoder"]["sha256"],
            line["steps"],
            {name: task["metric"] for name, task in line["tasks"].items()},
            {name: task["value"] for name, task in line["tasks"].items()},
            evidence.units(line),
            line.get("system"),
            _starts(line),
        )
        for line in newest.values()
    ]


def compare_runs(
    left: Sequence[ScoredRun],
    right: Sequence[ScoredRun],
    names: tuple[str, str] = ("left", "right"),
    draws: int = DRAWS,
) -> Comparison:
    """Return left less right over the seeds that both have.

    A side's runs of one seed that have no task in common, as stage two has, count as one; a seed
    that lacks a task of its side is not paired. Raises UserError where no seed is on both sides,
    where a side has a task twice in a seed, and where both sides' runs of a seed differ in tasks,
    dev rows or encoder.
    """
    found = [by_seed(side, name) for side, name in zip((left, right), names, strict=True)]
    sides = [complete(runs, every_task(runs)) for runs in found]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        has = [", ".join(map(str, sorted(side))) for side in sides]
        raise UserError(f"no seed is on both sides; {names[0]}: {has[0]}; {names[1]}: {has[1]}")
    pairs = [(sides[0][seed], sides[1][seed]) for seed in seeds]
    tasks = list(pairs[0][0].values)
    for pair in pairs:
        _check_pair(*pair, tasks)
    notes = _notes(found, seeds, names, pairs)
    generator = np.random.default_rng(SEED)
    observed, drawn, rows = {}, {}, []
    for task in tasks:
        units = [[pair[side].units[task] for pair in pairs] for side in (0, 1)]
        values = np.array([[pair[side].values[task] for pair in pairs] for side in (0, 1)])
        scores = drawn_scores(units, draws, generator)
        observed[task], drawn[task] = values[0] - values[1], scores[0] - scores[1]
        rows.append(
            Row(
                task,
                pairs[0][0].metrics[task],
                len(units[0][0].truth_U),
                *(float(side.mean()) for side in values),
                interval(observed[task], drawn[task], generator),
            )
        )
    mean = Row(
        "mean",
        "",
        sum(row.examples for row in rows),
        *(sum(getattr(row, side) for row in rows) / len(rows) for side in ("left", "right")),
        interval(
            np.mean(list(observed.values()), axis=0),
            np.mean(list(drawn.values()), axis=0),
            generator,
        ),
    )
    return Comparison(*names, tuple(seeds), tuple(rows), mean, tuple(notes))


def mean_interval(runs: Sequence[ScoredRun], draws: int = DRAWS) -> Interval:
    """Return the mean over tasks and seeds of one system's runs, with its interval.

    Raises UserError where seeds differ in their tasks.
    """
    runs = list(by_seed(runs, "the runs").values())
    tasks = list(runs[0].values)
    for run in runs:
        _check_tasks(run, tasks)
    generator = np.random.default_rng(SEED)
    drawn = [
        drawn_scores([[run.units[task] for run in runs]], draws, generator)[0] for task in tasks
    ]
    observed = [[run.values[task] for run in runs] for task in tasks]
    return interval(np.mean(observed, axis=0), np.mean(drawn, axis=0), generator)


def render(comparison: Comparison) -> str:
    """Return a comparison as a table in Markdown; * marks an interval without 0."""
    left, right = comparison.left, comparison.right
    lines = [
        f"{left} less {right}, {len(comparison.seeds)} paired seed(s), 95% intervals",
        "",
        f"| task | metric | dev | {left} | {right} | difference | interval |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in (*comparison.tasks, comparison.mean):
        gap = row.difference
        lines.append(
            f"| {row.name} | {row.metric} | {row.examples:,} | {row.left:.1f} | {row.right:.1f} | "
            f"{gap.value:+.2f} | {gap.low:+.2f} to {gap.high:+.2f}{' *' * gap.excludes_zero} |"
        )
    lines += ["", *(f"- {note}" for note in comparison.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _of_folder(folder: Path) -> ScoredRun:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run; allowed: the folder of a finished run")
    results = read_json(folder / "results.json")
    if results is None:
        raise UserError(f"{folder}: no results.json; allowed: the folder of a finished run")
    units = {name: units_of(task) for name, task in read_predictions(folder).items()}
    lacking = [name for name in results["tasks"] if name not in units]
    if lacking:
        raise UserError(f"{folder}: no dev predictions of {', '.join(lacking)}")
    return ScoredRun(
        str(folder),
        results["seed"],
        results["encoder"]["sha256"],
        results["steps"],
        {name: task["metric"] for name, task in results["tasks"].items()},
        {name: task["value"] for name, task in results["tasks"].items()},
        units,
        starts=_starts(results),
    )


def _starts(about: Mapping) -> frozenset[str | None]:
    """Return what a line, or results.json, says of the model that its run began with."""
    return frozenset([(about.get("start") or {}).get("sha256")])


def _begins(name: str, beginning: str) -> bool:
    """Whether a run's name is `beginning`, a pattern, or goes on after it with a slash."""
    whole = beginning.rstrip("/")
    return not beginning or fnmatchcase(name, whole) or fnmatchcase(name, f"{whole}/*")


def by_seed(runs: Sequence[ScoredRun], side: str) -> dict[int, ScoredRun]:
    """Return a side's runs by seed in order, those of several tasks' own runs put together.

    Raises UserError where two runs of a seed have a task in common, or are of different systems.
    """
    found: dict[int, ScoredRun] = {}
    for run in runs:
        before = found.get(run.seed)
        if before is None:
            found[run.seed] = run
            continue
        twice = before.values.keys() & run.values.keys()
        if twice:
            raise UserError(
                f"{side}: {before.name} and {run.name} both have seed {run.seed} and task "
                f"{min(twice)}; allowed: one run a seed and task"
            )
        if before.system != run.system:
            raise UserError(
                f"{side}: {before.name} and {run.name} are of two systems; allowed: one a side"
            )
        if before.encoder != run.encoder:
            raise UserError(f"{before.name} and {run.name} start from different encoders")
        found[run.seed] = replace(
            before,
            steps=before.steps + run.steps,
            metrics=_by_task(before.metrics, run.metrics),
            values=_by_task(before.values, run.values),
            units=_by_task(before.units, run.units),
            starts=before.starts | run.starts,
            parts=before.parts + run.parts,
        )
    return dict(sorted(found.items()))


def _by_task(one: Mapping, other: Mapping) -> dict:
    """Return both, by task in an order that does not depend on which run ended first."""
    return dict(sorted({**one, **other}.items()))


def every_task(runs: Mapping[int, ScoredRun]) -> list[str]:
    """Return the tasks that some of the runs has."""
    return list(dict.fromkeys(task for run in runs.values() for task in run.values))


def complete(runs: Mapping[int, ScoredRun], tasks: Collection[str]) -> dict[int, ScoredRun]:
    """Return the runs that have all of the tasks."""
    return {seed: run for seed, run in runs.items() if run.values.keys() >= set(tasks)}


def _check_pair(left: ScoredRun, right: ScoredRun, tasks: Sequence[str]) -> None:
    for run in (left, right):
        _check_tasks(run, tasks)
    if left.encoder != right.encoder:
        raise UserError(f"{left.name} and {right.name} start from different encoders")
    for task in tasks:
        one, other = left.units[task], right.units[task]
        if (one.sha256, one.metric) != (other.sha256, other.metric):
            raise UserError(f"{left.name} and {right.name} are scored on different rows of {task}")


def _check_tasks(run: ScoredRun, tasks: Sequence[str]) -> None:
    if set(run.values) != set(tasks):
        raise UserError(
            f"{run.name}: tasks {', '.join(run.values)}; the others have {', '.join(tasks)}"
        )


def _notes(sides, seeds: list[int], names: tuple[str, str], pairs) -> list[str]:
    """Return what a reader must know: which runs do not pair, unequal steps, one seed."""
    notes = []
    for side, name in zip(sides, names, strict=True):
        alone = sorted(side.keys() - set(seeds))
        if alone:
            notes.append(f"not paired: {name}, seed {', '.join(map(str, alone))}")
        tasks = every_task(side)
        for seed in side.keys() - complete(side, tasks).keys():
            lacking = ", ".join(sorted(set(tasks) - side[seed].values.keys()))
            notes.append(f"{name}, seed {seed}: there is no run of {lacking}")
        parts = max(side[seed].parts for seed in seeds)
        if parts > 1:
            notes.append(f"{name}: {parts} runs a seed, of different tasks, count as one")
    notes += _start_notes(sides, seeds, names)
    unequal = {(one.steps, other.steps) for one, other in pairs if one.steps != other.steps}
    for one, other in sorted(unequal):
        notes.append(f"not of equal length: {one} steps against {other}")
    if len({pair[0].encoder for pair in pairs}) > 1:
        notes.append("the seeds start from different encoders")
    if len(seeds) == 1:
        notes.append("one seed: the interval is over dev rows alone; another seed may differ more")
    return notes


def _start_notes(sides, seeds: list[int], names: tuple[str, str]) -> list[str]:
    """Return what a reader must know of the models that the paired runs began with."""
    starts = [frozenset().union(*(side[seed].starts for seed in seeds)) for side in sides]
    notes = []
    for mine in (0, 1):
        its, theirs = starts[mine], starts[1 - mine]
        if None in its and len(its) > 1:
            notes.append(
                f"{names[mine]}: some runs began with the encoder, some with a trained model"
            )
        if None not in its and None in theirs:
            notes.append(
                f"{names[mine]} went on from trained models, whose steps are not counted here; "
                f"{names[1 - mine]} began with the encoder"
            )
    if starts[0] != starts[1] and not any(None in its for its in starts):
        notes.append("each side went on from trained models of its own")
    return notes
