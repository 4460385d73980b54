"""The runs of a study: which there are, what each is by its configuration, what is left of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

from ds_moe_mtl.config import RunConfig, load_config
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
    """One run. point: section.key=value of the grid, or what the tuning chose."""

    stage: str
    data: str
    system: str
    point: tuple[str, ...]
    seed: int

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
        values = json.loads(text)
        return cls(**{**values, "point": tuple(values["point"])})


def overrides_of(study: Study, run: StudyRun) -> list[str]:
    """Return what a run says over the study's experiment; its folder is not among it."""
    return [
        *study.set,
        *study.data[run.data],
        *study.overrides_of(run.system),
        *run.point,
        f"run.seed={run.seed}",
    ]


def run_config(study: Study, run: StudyRun, own: Sequence[str], folder: Path) -> RunConfig:
    """Return a run's configuration, in a folder below `folder` of its name and checksum.

    own: the user's overrides. Raises UserError for what the user can mend.
    """
    lines = [*overrides_of(study, run), *own, "train.keep_checkpoints=0", f"run.dir={folder}"]
    config = load_config(study.experiment, lines)
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
    return sorted(runs, key=lambda run: order[run.seed]), waiting


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
    if stage.tuned is None:
        yield from _grid(stage)
        return
    point = chosen_point(study, stage.tuned, data, system, lines)
    if point is not None:
        yield point


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
