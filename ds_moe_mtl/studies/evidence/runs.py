"""The runs of a study: which there are, what each is by its configuration, what is left of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

from ds_moe_mtl.config import RunConfig, load_config
from ds_moe_mtl.config.files import REPOSITORY
from ds_moe_mtl.studies.evidence.schema import Stage, Study
from ds_moe_mtl.studies.points import point_name

# Keys that say where things lie or how fast they go, not what is trained. The DeepSpeed file and a
# user's own files count by their names: their folders differ between machines.
_NO_PART = {
    "run": ("dir", "resume"),
    "data": ("root", "cache"),
    "train": ("threads", "log_every", "save_every", "keep_checkpoints", "hang_timeout"),
}


@dataclass(frozen=True)
class StudyRun:
    """One run.

    point: section.key=value of the grid, or what the tuning chose. start: the run of an earlier
    stage with whose model it begins, None where it begins with the encoder.
    """

    stage: str
    data: str
    system: str
    point: tuple[str, ...]
    seed: int
    start: "StudyRun | None" = None

    @property
    def name(self) -> str:
        """What --only and the lines call it."""
        return f"{self.stage}/{self.data}/{self.system}/{point_name(self.point)}/seed{self.seed}"

    def to_json(self) -> str:
        """The run as one word of a command line; `from_json` gives the same back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StudyRun":
        """The run that `to_json` wrote."""
        return cls._of(json.loads(text))

    @classmethod
    def _of(cls, values: Mapping) -> "StudyRun":
        start = None if values["start"] is None else cls._of(values["start"])
        return cls(**{**values, "point": tuple(values["point"]), "start": start})


def overrides_of(study: Study, run: StudyRun) -> list[str]:
    """Return what a run says over the study's experiment; its folder is not among it.

    What is said of start.* is left out where the run begins with the encoder.
    """
    said = [
        *study.set,
        *study.stages[run.stage].set,
        *study.data[run.data],
        *study.overrides_of(run.system),
        *run.point,
        f"run.seed={run.seed}",
    ]
    return [item for item in said if run.start is not None or not item.startswith("start.")]


def run_config(study: Study, run: StudyRun, own: Sequence[str], folder: Path) -> RunConfig:
    """Return a run's configuration, in a folder below `folder` of its name and checksum.

    own: the user's overrides. Raises UserError for what the user can mend.
    """
    lines = [*overrides_of(study, run), *own, "train.keep_checkpoints=0", f"run.dir={folder}"]
    if run.start is not None:  # a folder that is there: the model itself may not be made yet
        lines.append(f"start.model={json.dumps(str(REPOSITORY))}")
    config = load_config(study.experiment, lines)
    if run.start is not None:
        model = run_config(study, run.start, own, folder).run.dir
        start = config.start.model_copy(update={"model": model})
        config = config.model_copy(update={"start": start})
    where = folder / f"{run.name}-{config_hash(config)[:8]}"
    return config.model_copy(
        update={"run": config.run.model_copy(update={"dir": str(where.absolute())})}
    )


def config_hash(config: RunConfig) -> str:
    """Return the checksum of what a YAML and its overrides say of a run.

    Paths of this machine are no part of it, nor is what is left at its default: lines stay good
    when a key is added. A study says every key that it is about.
    """
    said = config.model_dump(mode="json", exclude_unset=True)
    for section, keys in _NO_PART.items():
        for key in keys:
            said.get(section, {}).pop(key, None)
    said.pop("track", None)
    said["tasks"] = [_without_folders(task) for task in said["tasks"]]
    if config.start.model is not None:  # its folder's name ends with its own checksum
        said["start"]["model"] = Path(config.start.model).name
    said["deepspeed"] = Path(config.deepspeed).name
    said = {key: value for key, value in said.items() if value not in ({}, None)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _without_folders(task: str | dict) -> str | dict:
    if isinstance(task, str):
        return task
    return {
        key: Path(value).name if key in ("train", "dev") and value else value
        for key, value in task.items()
    }


def stage_runs(study: Study, name: str, lines: Sequence[Mapping]) -> tuple[list[StudyRun], list]:
    """Return (the runs of a stage, what cannot be planned yet and why).

    lines: of finished runs; tuned rates and the best systems are chosen from them.
    """
    stage = study.stages[name]
    runs, waiting = [], []
    for data in stage.data or study.data:
        systems = list(stage.systems or study.systems)
        if stage.best:
            found = _best(study, stage, data, lines)
            if found is None:
                waiting.append(f"{name}/{data}: the best {stage.best} wait for {stage.of}")
            systems += found or []
        for system in systems:
            points = list(_points(study, stage, data, system, lines))
            if not points:
                waiting.append(f"{name}/{data}/{system}: waits for {stage.tuned}")
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
) -> tuple[list[StudyRun], list[str]]:
    """Return (runs with the run that each begins with, what those that cannot begin wait for)."""
    earlier, waits = stage_runs(study, stage.start, lines)
    variants = study.stages[stage.start].data or tuple(study.data)
    started, waiting = [], []
    for run in runs:
        data = run.data if len(variants) > 1 else variants[0]
        its = [r for r in earlier if (r.data, r.system, r.seed) == (data, run.system, run.seed)]
        if not its and any(_is_about(wait, f"{stage.start}/{data}/{run.system}") for wait in waits):
            waiting.append(f"{run.name}: waits for {stage.start}")
        elif its and _value(its[0], lines) == float("-inf"):
            waiting.append(f"{run.name}: {its[0].name}, whose model it begins with, has failed")
        else:
            started.append(replace(run, start=its[0] if its else None))
    return started, waiting


def _is_about(wait: str, runs: str) -> bool:
    """Whether what cannot be planned yet, "stage/data[/system[/..]]: why", may be one of `runs`."""
    place = wait.partition(":")[0]
    return f"{runs}/".startswith(f"{place}/") or place.startswith(f"{runs}/")


def chosen_point(
    study: Study, stage: str, data: str, system: str, lines: Sequence[Mapping]
) -> tuple[str, ...] | None:
    """Return the point of a grid with the best mean score over its seeds; None until all are done.

    A run that failed puts its point last.
    """
    scores: dict[tuple[str, ...], float] = {}
    for point in _grid(study.stages[stage]):
        wanted = [StudyRun(stage, data, system, point, s) for s in study.stages[stage].seeds]
        values = [_value(run, lines) for run in wanted]
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
    """Return the best systems of an earlier stage beside those that are named; None until done."""
    wanted, waiting = stage_runs(study, stage.of, lines)
    runs = [run for run in wanted if run.data == data]
    means = {}
    for system in study.systems:
        values = [_value(run, lines) for run in runs if run.system == system]
        if None in values or any(text.startswith(f"{stage.of}/{data}") for text in waiting):
            return None
        if values and system not in stage.systems:
            means[system] = fmean(values)
    return sorted(means, key=means.get, reverse=True)[: stage.best]


def _value(run: StudyRun, lines: Sequence[Mapping]) -> float | None:
    """Return a finished run's mean score, minus infinity for one that failed."""
    found = [line for line in lines if line["run"] == run.name]
    if not found:
        return None
    return float("-inf") if found[-1]["mean"] is None else found[-1]["mean"]
