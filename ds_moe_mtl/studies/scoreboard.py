"""Scores of several runs with intervals over their dev rows, each run beside the first.

B draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.analysis.page.scores import Estimate, Scoreboard, ScoreRow
from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.bootstrap import DRAWS, SEED, Interval, drawn_scores, interval
from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.evaluation.units import DevUnits, units_of


@dataclass(frozen=True)
class Scored:
    """What a run says of itself: results.json, and its dev predictions by task (or none)."""

    results: Mapping
    predictions: Mapping[str, TaskPredictions]


@dataclass(frozen=True)
class _Drawn:
    """A task's scores in the run itself and on drawn rows."""

    value: float
    drawn_B: np.ndarray


def scoreboard(names: Sequence[str], runs: Sequence[Scored], draws: int = DRAWS) -> Scoreboard:
    """Return every task's score in every run with its interval, and differences to the first run.

    Intervals are over dev rows, the same draws for runs that were scored on the same rows.
    """
    tasks = dict.fromkeys(task for run in runs for task in run.results.get("tasks", {}))
    rows, drawn = [], {}
    for task in tasks:
        row, drawn[task] = _row(task, runs, draws)
        rows.append(row)
    return Scoreboard(tuple(rows), _mean(list(tasks), runs, drawn), _notes(names, runs, tasks))


def _row(task: str, runs: Sequence[Scored], draws: int) -> tuple[ScoreRow, list[_Drawn | None]]:
    results = [run.results.get("tasks", {}).get(task) for run in runs]
    units = [_units(run, task) for run in runs]
    drawn: list[_Drawn | None] = [None] * len(runs)
    for rows in {one.sha256 for one in units if one is not None}:
        here = [i for i, one in enumerate(units) if one is not None and one.sha256 == rows]
        scores = drawn_scores([[units[i]] for i in here], draws, np.random.default_rng(SEED))
        for place, i in enumerate(here):
            drawn[i] = _Drawn(results[i]["value"], scores[place, :, 0])
    scores = tuple(
        None if result is None else _estimate(result["value"], one)
        for result, one in zip(results, drawn, strict=True)
    )
    deltas = []
    for i in range(1, len(runs)):
        pair = (results[0], results[i])
        same = None not in pair and pair[0]["metric"] == pair[1]["metric"]
        paired = None not in (units[0], units[i]) and units[0].sha256 == units[i].sha256
        deltas.append(_difference(drawn[i], drawn[0]) if same and paired else None)
    first = next(result for result in results if result is not None)
    return ScoreRow(task, first["metric"], first["examples"], scores, tuple(deltas)), drawn


def _mean(tasks: list[str], runs: Sequence[Scored], drawn: Mapping) -> ScoreRow | None:
    """Return the mean over tasks, None where runs differ in their tasks or there is one task."""
    if len(tasks) < 2 or any(set(run.results.get("tasks", {})) != set(tasks) for run in runs):
        return None
    means = [
        _Drawn(
            sum(run.results["tasks"][task]["value"] for task in tasks) / len(tasks),
            np.mean([drawn[task][i].drawn_B for task in tasks], axis=0),
        )
        if all(drawn[task][i] is not None for task in tasks)
        else None
        for i, run in enumerate(runs)
    ]
    scores = tuple(
        _estimate(np.mean([run.results["tasks"][task]["value"] for task in tasks]), mean)
        for run, mean in zip(runs, means, strict=True)
    )
    paired = [all(_is_paired(runs[0], run, task) for task in tasks) for run in runs]
    deltas = tuple(
        _difference(means[i], means[0]) if paired[i] and None not in (means[i], means[0]) else None
        for i in range(1, len(runs))
    )
    examples = sum(runs[0].results["tasks"][task]["examples"] for task in tasks)
    return ScoreRow("mean over tasks", "", examples, scores, deltas)


def _units(run: Scored, task: str) -> DevUnits | None:
    found = run.predictions.get(task)
    if found is None or task not in run.results.get("tasks", {}):
        return None
    try:
        return units_of(found)
    except UserError:  # its metric is not made of rows
        return None


def _is_paired(one: Scored, other: Scored, task: str) -> bool:
    rows = [run.predictions.get(task) for run in (one, other)]
    return None not in rows and rows[0].sha256 == rows[1].sha256


def _estimate(value: float, drawn: _Drawn | None) -> Estimate:
    if drawn is None:
        return Estimate(float(value))
    return _of(_interval(value, drawn.drawn_B))


def _difference(one: _Drawn, other: _Drawn) -> Estimate:
    return _of(_interval(one.value - other.value, one.drawn_B - other.drawn_B))


def _interval(value: float, drawn_B: np.ndarray) -> Interval:
    return interval(np.array([value]), drawn_B[:, None], np.random.default_rng(SEED))


def _of(found: Interval) -> Estimate:
    return Estimate(found.value, found.low, found.high)


def _notes(names: Sequence[str], runs: Sequence[Scored], tasks) -> tuple[str, ...]:
    notes = []
    for name, run in zip(names, runs, strict=True):
        alone = [task for task in run.results.get("tasks", {}) if _units(run, task) is None]
        if alone and run.predictions:
            notes.append(f"{name}: no interval for {', '.join(alone)}.")
    for name, run in zip(names[1:], runs[1:], strict=True):
        shared = [t for t in tasks if all(_units(r, t) is not None for r in (runs[0], run))]
        other = [task for task in shared if not _is_paired(runs[0], run, task)]
        if other:
            notes.append(
                f"{name} was scored on other dev rows than {names[0]} in {', '.join(other)}: "
                "no difference is given."
            )
        for key, word in (("seed", "seeds"), ("steps", "numbers of steps")):
            if run.results.get(key) != runs[0].results.get(key):
                notes.append(f"{name} and {names[0]} have different {word}.")
        if run.results.get("encoder") != runs[0].results.get("encoder"):
            notes.append(f"{name} and {names[0]} start from different encoders.")
    return tuple(notes)
