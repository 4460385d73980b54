"""Which runs a stage of a study has: seeds and points, what tuning chose, whose models it takes."""

from collections.abc import Mapping, Sequence
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

    @property
    def told(self) -> str:
        """The line that a user reads."""
        return f"not planned{'' if self.never else ' yet'}: {self}"

    def is_about(self, runs: str) -> bool:
        """Whether some of `runs`, "stage/data[/system]", are among what cannot be planned."""
        return f"{runs}/".startswith(f"{self.place}/") or self.place.startswith(f"{runs}/")


class Stages:
    """What can be planned of a study's stages from the lines of finished runs.

    Tuned rates and the best systems are chosen from them; each stage is planned once.
    """

    def __init__(self, study: Study, lines: Sequence[Mapping]) -> None:
        self._study = study
        self._means = {line["run"]: line["mean"] for line in lines}
        self._planned: dict[str, tuple[list[StudyRun], list[Wait]]] = {}

    def plan(self, name: str) -> tuple[list[StudyRun], list[Wait]]:
        """Return (the runs of a stage, what cannot be planned and why)."""
        if name not in self._planned:
            self._planned[name] = self._plan(name)
        return self._planned[name]

    def _plan(self, name: str) -> tuple[list[StudyRun], list[Wait]]:
        stage = self._study.stages[name]
        runs, waiting = [], []
        for data in self._study.variants(stage):
            systems = list(stage.systems or self._study.systems)
            if stage.best:
                found = self._best(stage, data)
                if found is None:
                    why = f"the best {stage.best} wait for {stage.of}"
                    waiting.append(Wait(f"{name}/{data}", why))
                systems += found or []
            for system in systems:
                points = self._points(stage, data, system)
                if not points:
                    waiting.append(Wait(f"{name}/{data}/{system}", f"waits for {stage.tuned}"))
                runs += [StudyRun(name, data, system, p, s) for s in stage.seeds for p in points]
        # Seeds before systems: the first seed's runs stand side by side.
        runs.sort(key=lambda run: stage.seeds.index(run.seed))
        if stage.start is not None:
            runs, waits = self._started(stage, runs)
            waiting += waits
        return runs, waiting

    def chosen_point(self, name: str, data: str, system: str) -> tuple[str, ...] | None:
        """Return the point of a grid with the best mean over its seeds; None until all are done.

        A run that failed, or whose model to begin with has failed, puts its point last.
        """
        stage = self._study.stages[name]
        lost = {wait.place for wait in self.plan(name)[1] if wait.never}
        scores: dict[tuple[str, ...], float] = {}
        for point in _grid(stage):
            wanted = [StudyRun(name, data, system, point, seed) for seed in stage.seeds]
            values = [_FAILED if run.name in lost else self._value(run) for run in wanted]
            if None in values:
                return None
            scores[point] = fmean(values)
        return max(scores, key=scores.get)

    def _points(self, stage: Stage, data: str, system: str) -> list[tuple[str, ...]]:
        study = self._study
        if stage.tuned is None or system not in study.systems_of(study.stages[stage.tuned]):
            return _grid(stage)
        point = self.chosen_point(stage.tuned, data, system)
        return [] if point is None else [point]

    def _best(self, stage: Stage, data: str) -> list[str] | None:
        """Return the best systems of an earlier stage beside those that are named; None until done.

        A system of which a run has failed is none of them.
        """
        runs, waits = self.plan(stage.of)
        place = f"{stage.of}/{data}"
        if any(wait.is_about(place) and not wait.never for wait in waits):
            return None
        means = {}
        for system in self._study.systems:
            its = [run for run in runs if (run.data, run.system) == (data, system)]
            values = [self._value(run) for run in its]
            if None in values:
                return None
            failed = _FAILED in values or any(wait.is_about(f"{place}/{system}") for wait in waits)
            if values and not failed and system not in stage.systems:
                means[system] = fmean(values)
        return sorted(means, key=means.get, reverse=True)[: stage.best]

    def _started(self, stage: Stage, runs: Sequence[StudyRun]) -> tuple[list[StudyRun], list[Wait]]:
        """Return (runs with what each begins with, what those that cannot begin wait for)."""
        earlier, waits = self.plan(stage.start)
        places = {(run.data, run.system, run.seed): run for run in earlier}
        variants = self._study.variants(self._study.stages[stage.start])
        started, waiting = [], []
        for run in runs:
            data = run.data if len(variants) > 1 else variants[0]
            its = places.get((data, run.system, run.seed))
            about = f"{stage.start}/{data}/{run.system}"
            waits_of = [wait for wait in waits if wait.is_about(about)]
            if its is not None and self._value(its) == _FAILED:
                why = f"{its.name}, whose model it begins with, has failed"
                waiting.append(Wait(run.name, why, never=True))
            elif its is not None or not waits_of:
                started.append(replace(run, start=its))
            else:
                never = all(wait.never for wait in waits_of)
                why = f"waits for {stage.start} ({waits_of[0].why})"
                waiting.append(Wait(run.name, why, never))
        return started, waiting

    def _value(self, run: StudyRun) -> float | None:
        """Return a finished run's mean score, minus infinity for one that failed."""
        if run.name not in self._means:
            return None
        mean = self._means[run.name]
        return _FAILED if mean is None else mean


def _grid(stage: Stage) -> list[tuple[str, ...]]:
    return [
        tuple(f"{key}={value}" for key, value in zip(stage.grid, values, strict=True))
        for values in product(*stage.grid.values())
    ]
