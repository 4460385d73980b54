"""Which runs a stage of a study has: seeds and points, what tuning chose, whose models it takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import NamedTuple

from ds_moe_mtl.studies.evidence.runs import StudyRun
from ds_moe_mtl.studies.evidence.schema import Stage, Study

_FAILED = float("-inf")


class Wait(NamedTuple):
    """What cannot be planned: place, "stage/data[/system[/..]]", and why. never: it will not be."""

    place: str
    why: str
    never: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"

    def is_about(self, runs: str) -> bool:
        """Whether some of `runs`, "stage/data[/system]", are among what cannot be planned."""
        return f"{runs}/".startswith(f"{self.place}/") or self.place.startswith(f"{runs}/")


def stage_runs(
    study: Study, name: str, lines: Sequence[Mapping]
) -> tuple[list[StudyRun], list[Wait]]:
    """Return (the runs of a stage, what cannot be planned and why).

    lines: of finished runs; tuned rates and the best systems are chosen from them.
    """
    stage = study.stages[name]
    runs, waiting = [], []
    for data in study.variants(stage):
        systems = list(stage.systems or study.systems)
        if stage.best:
            found = _best(study, stage, data, lines)
            if found is None:
                waiting.append(Wait(f"{name}/{data}", f"the best {stage.best} wait for {stage.of}"))
            systems += found or []
        for system in systems:
            points = list(_points(study, stage, data, system, lines))
            if not points:
                waiting.append(Wait(f"{name}/{data}/{system}", f"waits for {stage.tuned}"))
            # Seeds before points: the first seed's runs of a grid stand side by side.
            runs += [
                StudyRun(name, data, system, point, seed)
                for seed in stage.seeds
                for point in points
            ]
    order = {seed: number for number, seed in enumerate(stage.seeds)}
    runs.sort(key=lambda run: order[run.seed])
    if stage.start is not None:
        runs, waits = _started(study, stage, runs, lines)
        waiting += waits
    return runs, waiting


def _started(
    study: Study, stage: Stage, runs: Sequence[StudyRun], lines: Sequence[Mapping]
) -> tuple[list[StudyRun], list[Wait]]:
    """Return (runs with the run that each begins with, what those that cannot begin wait for)."""
    earlier, waits = stage_runs(study, stage.start, lines)
    variants = study.variants(study.stages[stage.start])
    started, waiting = [], []
    for run in runs:
        data = run.data if len(variants) > 1 else variants[0]
        its = [r for r in earlier if (r.data, r.system, r.seed) == (data, run.system, run.seed)]
        waits_of = [wait for wait in waits if wait.is_about(f"{stage.start}/{data}/{run.system}")]
        if its and _value(its[0], lines) == _FAILED:
            why = f"{its[0].name}, whose model it begins with, has failed"
            waiting.append(Wait(run.name, why, never=True))
        elif its or not waits_of:
            started.append(replace(run, start=its[0] if its else None))
        else:
            never = all(wait.never for wait in waits_of)
            why = f"waits for {stage.start} ({waits_of[0].why})"
            waiting.append(Wait(run.name, why, never))
    return started, waiting


def chosen_point(
    study: Study, stage: str, data: str, system: str, lines: Sequence[Mapping]
) -> tuple[str, ...] | None:
    """Return the point of a grid with the best mean score over its seeds; None until all are done.

    A run that failed, or whose model to begin with has failed, puts its point last.
    """
    lost = {wait.place for wait in stage_runs(study, stage, lines)[1] if wait.never}
    scores: dict[tuple[str, ...], float] = {}
    for point in _grid(study.stages[stage]):
        wanted = [StudyRun(stage, data, system, point, s) for s in study.stages[stage].seeds]
        values = [_FAILED if run.name in lost else _value(run, lines) for run in wanted]
        if None in values:
            return None
        scores[point] = fmean(values)
    return max(scores, key=scores.get)


def _points(
    study: Study, stage: Stage, data: str, system: str, lines: Sequence[Mapping]
) -> Iterator[tuple[str, ...]]:
    if stage.tuned is None or system not in _systems(study, study.stages[stage.tuned]):
        yield from _grid(stage)
        return
    point = chosen_point(study, stage.tuned, data, system, lines)
    if point is not None:
        yield point


def _systems(study: Study, stage: Stage) -> tuple[str, ...]:
    """Return the systems that a stage may have."""
    return tuple(study.systems) if stage.systems is None or stage.best else stage.systems


def _grid(stage: Stage) -> list[tuple[str, ...]]:
    return [
        tuple(f"{key}={value}" for key, value in zip(stage.grid, values, strict=True))
        for values in product(*stage.grid.values())
    ]


def _best(study: Study, stage: Stage, data: str, lines: Sequence[Mapping]) -> list[str] | None:
    """Return the best systems of an earlier stage beside those that are named; None until done.

    A system of which a run has failed is none of them.
    """
    runs, waits = stage_runs(study, stage.of, lines)
    place = f"{stage.of}/{data}"
    if any(wait.is_about(place) and not wait.never for wait in waits):
        return None
    means = {}
    for system in study.systems:
        values = [_value(run, lines) for run in runs if (run.data, run.system) == (data, system)]
        if None in values:
            return None
        failed = _FAILED in values or any(wait.is_about(f"{place}/{system}") for wait in waits)
        if values and not failed and system not in stage.systems:
            means[system] = fmean(values)
    return sorted(means, key=means.get, reverse=True)[: stage.best]


def _value(run: StudyRun, lines: Sequence[Mapping]) -> float | None:
    """Return a finished run's mean score, minus infinity for one that failed."""
    found = [line for line in lines if line["run"] == run.name]
    if not found:
        return None
    return _FAILED if found[-1]["mean"] is None else found[-1]["mean"]
