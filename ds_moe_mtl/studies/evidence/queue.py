"""A study as a queue: a process per run, one thread each, a line of evidence as each run ends.

<runs>/<stage>/<data>/<system>/<point>/seed<n>-<checksum>/    run folders; their models stay where a
                                                              later stage begins with them
<runs>/logs/                                                  what each run printed
"""

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean

from ds_moe_mtl.config import Diverged, RunConfig, UserError, load_config
from ds_moe_mtl.config.files import REPOSITORY, read_json
from ds_moe_mtl.evaluation.predictions import read_predictions
from ds_moe_mtl.evaluation.units import units_of
from ds_moe_mtl.models.description import CONFIG, WEIGHTS
from ds_moe_mtl.ranks.jobs import Job, run_jobs
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.studies.evidence.runs import (
    StudyRun,
    of_the_run,
    overrides_of,
    recipe_hash,
    run_config,
    run_hash,
)
from ds_moe_mtl.studies.evidence.schema import Study
from ds_moe_mtl.studies.evidence.stages import Stages, Wait
from ds_moe_mtl.studies.lines import append_run, read_evidence
from ds_moe_mtl.training.selection import mean_score

Say = Callable[[str], None]
NICEST = 19  # a study takes what other work leaves


@dataclass(frozen=True)
class Place:
    """A study with where its lines and its run folders are. own: the user's overrides."""

    name: str
    study: Study
    output: Path
    runs: Path
    own: tuple[str, ...] = ()
    keep_models: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """A run of a stage with what its configuration comes to; line: where it is done."""

    run: StudyRun
    config: RunConfig
    checksum: str
    line: dict | None


def planned(
    place: Place, only: Sequence[str] = ()
) -> tuple[dict[str, list[PlannedRun]], list[Wait]]:
    """Return (a study's runs by stage as far as they can be planned, what the others wait for).

    only: patterns of run names; what a pattern is the beginning of counts too. A run that is done
    and whose model another one is to begin with, and lacks, is left again.
    """
    lines = read_evidence(place.output).runs
    done = {(line["run"], line["config"]): line for line in lines}
    stages: dict[str, list[PlannedRun]] = {}
    waiting: list[Wait] = []
    plans = Stages(place.study, lines)
    for stage in place.study.stages:
        runs, waits = plans.plan(stage)
        waiting += [wait for wait in waits if not only or _may_be_asked(wait.place, only)]
        stages[stage] = []
        for run in runs:
            if not only or _asked(run.name, only):
                config = run_config(place.study, run, place.own, place.runs)
                checksum = run_hash(run, config)
                line = done.get((run.name, checksum))
                stages[stage].append(PlannedRun(run, config, checksum, line))
    if not waiting and not any(stages.values()):
        raise UserError(f"--only {' '.join(only)}: no run's name begins so; allowed: see --list")
    _leave_what_is_wanted_again(stages)
    made = {(line["run"], line["config"][:8]) for line in lines}
    for runs in stages.values():  # the first first: a run that goes takes those after it along
        for one in list(runs):
            begun = one.run.start
            if one.line is not None or begun is None:
                continue
            folder = Path(one.config.start.model)
            is_made = (begun.name, folder.name.rpartition("-")[2]) in made and _has_model(folder)
            if not is_made and all(each.run != begun for each in stages[begun.stage]):
                runs.remove(one)
                waiting.append(Wait(one.run.name, f"waits for the model of {begun.name}"))
    return stages, waiting


def _leave_what_is_wanted_again(stages: Mapping[str, list[PlannedRun]]) -> None:
    """Have runs left again that are done and whose model another one lacks."""
    lost = set()
    for runs in reversed(stages.values()):  # the last first: its runs may leave runs before them
        for number, one in enumerate(runs):
            line = None if one.run in lost else one.line
            runs[number] = replace(one, line=line)
            start = one.config.start.model
            if line is None and one.run.start is not None and not _has_model(Path(start)):
                lost.add(one.run.start)


def run_study(
    place: Place,
    at_once: int,
    only: Sequence[str],
    program: Sequence[str],
    arguments: Callable[[StudyRun], Sequence[str]],
    say: Say,
    nice: int = NICEST,
) -> int:
    """Run what is left of a study, stage by stage; return 0, or 75 when asked to stop.

    program, arguments(run): the words of a process that runs one. nice: of all of them. A run whose
    training diverges is a finished run with that result. Raises UserError where a run fails in any
    other way, and where another process runs the same study in the same folder.
    """
    os.nice(max(0, nice - os.nice(0)))
    os.environ["OMP_NUM_THREADS"] = "1"
    place.runs.mkdir(parents=True, exist_ok=True)
    with (place.runs / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{place.runs}: another process runs this study; allowed: wait, or --runs FOLDER"
            ) from None
        tell = _Progress(place, say)
        for stage in place.study.stages:
            stages, _ = planned(place, only)
            left = [one for one in stages[stage] if one.line is None]
            if not left:
                continue
            say(f"{stage}: {len(left)} of {len(stages[stage])} runs left, {at_once} at a time")
            tell.begin(len(left))
            jobs = [Job(one.run.name, tuple(arguments(one.run))) for one in left]
            status = run_jobs(jobs, program, at_once, place.runs / "logs", tell)
            if status:
                return status
    for wait in planned(place, only)[1]:
        say(wait.told)
    return 0


def run_one(place: Place, run: StudyRun, ranks: Ranks, say: Say) -> int:
    """Train one run, append its line, drop its model; return train's status."""
    from ds_moe_mtl.training.train import train  # DeepSpeed, which the queue itself does without

    config = run_config(place.study, run, place.own, place.runs)
    folder = Path(config.run.dir)
    begins_others = place.study.begins_others(run.stage) and config.model.kind != "single"
    if begins_others and (folder / "results.json").is_file() and not _has_model(folder):
        shutil.rmtree(folder)  # its model was taken away, and is wanted again
    if run.start is not None and _began_elsewhere(folder, config):
        say(f"{folder}: its first model has moved; it begins anew")
        shutil.rmtree(folder)
    failure, commit = None, _commit()
    try:
        status = train(config, ranks, say)
        if status:
            return status
    except Diverged as error:
        failure = str(error)
    line, units = _line(place, run, config, failure)
    append_run(place.output, {**line, "commit": commit}, units)
    if not (place.keep_models or begins_others):
        for model in (folder / "model", *folder.glob("*/model"), *folder.glob("**/checkpoints")):
            shutil.rmtree(model, ignore_errors=True)
    return 0


def _line(place: Place, run: StudyRun, config: RunConfig, failure: str | None) -> tuple:
    """Return (a run's line of evidence, its dev rows by task)."""
    folder = Path(config.run.dir)
    results = read_json(folder / "results.json") if failure is None else {"tasks": {}, "steps": 0}
    environment = folder / "environment.json"
    about = read_json(environment)
    ended = (folder / "results.json").stat().st_mtime if failure is None else time.time()
    units = {} if failure else {n: units_of(t) for n, t in read_predictions(folder).items()}
    line = {
        "run": run.name,
        "study": place.name,
        "stage": run.stage,
        "grid": bool(place.study.stages[run.stage].grid),
        "data": run.data,
        "system": run.system,
        "point": list(run.point),
        "seed": run.seed,
        "config": run_hash(run, config),
        "baseline": place.study.baseline,
        "experiment": place.study.experiment,
        "overrides": [
            *overrides_of(place.study, run, place.own),
            *of_the_run(place.own),
        ],
        "machine": about["device"],
        "versions": about["versions"],
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(ended - environment.stat().st_mtime, 1),
        "model_kind": config.model.kind,
        "start": _began_with(place, run.start, results),
        "notes": results.get("notes", []),
        "encoder": results.get("encoder"),
        "steps": results["steps"],
        "failure": failure,
        "mean": mean_score(results["tasks"]) if failure is None else None,
        "tasks": results["tasks"],
    }
    return line, units


def _began_with(place: Place, start: StudyRun | None, results: Mapping) -> dict | None:
    """Return what a line says of the trained model that a run began with, None without one.

    start: the study's run that left it, None for a model of the user's own.
    """
    if results.get("start") is None and start is None:
        return None
    recipe = None if start is None else recipe_hash(place.study, start, place.own)
    return {
        "run": None if start is None else start.name,
        "recipe": recipe,
        "sha256": (results.get("start") or {}).get("sha256"),
    }


class _Progress:
    """Says what a queue says, and after each run how many are done, at what rate, what is left."""

    def __init__(self, place: Place, say: Say) -> None:
        self._place, self._say = place, say

    def begin(self, wanted: int) -> None:
        self._wanted, self._began = wanted, time.monotonic()
        self._before = self._seen = len(read_evidence(self._place.output).runs)

    def __call__(self, line: str) -> None:
        self._say(line)
        runs = read_evidence(self._place.output).runs
        done = len(runs) - self._before
        if len(runs) == self._seen or not done:
            return
        for run in runs[self._seen :]:
            score = f"mean {run['mean']:.2f}" if run["mean"] is not None else run["failure"]
            self._say(f"  {run['run']}: {score}")
        self._seen = len(runs)
        hours = (time.monotonic() - self._began) / 3600
        left = max(0, self._wanted - done) * hours / done
        self._say(
            f"  {done} of {self._wanted} done, {done / hours:.1f} runs an hour, "
            f"{int(left)}:{int(left * 60) % 60:02} h left"
        )


def describe_plan(place: Place, only: Sequence[str], say: Say) -> None:
    """Say every run with its state, what waits, and what is left in hours of one thread."""
    stages, waiting = planned(place, only)
    lines = read_evidence(place.output).runs
    left_seconds, unknown = 0.0, 0
    for stage, runs in stages.items():
        done = [one for one in runs if one.line is not None]
        say(f"{stage}: {len(done)} of {len(runs)} done")
        for one in runs:
            state = "left"
            if one.line is not None:
                mean = one.line["mean"]
                state = f"mean {mean:.2f}" if mean is not None else one.line["failure"]
            else:
                known = _seconds_of_such(lines, one.run)
                unknown += known is None
                left_seconds += known or 0.0
            say(f"  {one.run.name}: {state}")
    for wait in waiting:
        say(wait.told)
    more = f", and {unknown} runs of unknown length" if unknown else ""
    say(f"left: {left_seconds / 3600:.1f} h of one thread, by the runs that are done{more}")


def _seconds_of_such(lines: Sequence[Mapping], run: StudyRun) -> float | None:
    """Return the mean seconds of the system's finished runs on this data, else of all on it."""
    lines = [
        line
        for line in lines
        if line["data"] == run.data and line["seconds"] and line["failure"] is None
    ]
    own = [line["seconds"] for line in lines if line["system"] == run.system]
    every = own or [line["seconds"] for line in lines]
    return fmean(every) if every else None


def _has_model(folder: Path) -> bool:
    """Whether a run's folder holds a finished model of one network."""
    return all((folder / "model" / name).is_file() for name in (CONFIG, WEIGHTS))


def _began_elsewhere(folder: Path, config: RunConfig) -> bool:
    """Whether what lies in a run's folder began with the same model in another folder.

    The run's name has the checksum of all that it says, and a run refuses another start.model.
    """
    file = folder / "config.yaml"
    return file.is_file() and load_config(file, check_files=False).start.model != config.start.model


def _may_be_asked(place: str, patterns: Sequence[str]) -> bool:
    """Whether runs at or below a place, "stage/data[/system]", may match a pattern."""
    begins = [re.split(r"[*?[]", pattern)[0] for pattern in patterns]
    return any(f"{place}/".startswith(text) or text.startswith(f"{place}/") for text in begins)


def _asked(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, f"{pattern}*") for pattern in patterns)


def _commit() -> str | None:
    """Return the commit of the sources, with + where they differ from it; None outside a clone."""
    try:
        answers = [
            subprocess.run(
                ["git", *words],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for words in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--", "ds_moe_mtl", "kernels", "ds_configs"),
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[0] + ("+" if answers[1] else "")
