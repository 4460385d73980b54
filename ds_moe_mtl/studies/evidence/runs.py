"""A run of a study: its name, what it says over the experiment, its configuration and checksum."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.config.files import REPOSITORY
from ds_moe_mtl.studies.evidence.schema import Study
from ds_moe_mtl.studies.points import point_name
from ds_moe_mtl.tasks.known import expand_tasks

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

    In a study with second stages what is said of start.* is about the runs that begin with a model,
    and left out of the others.
    """
    stage = study.stages[run.stage]
    said = [
        *study.set,
        *study.data[run.data],
        *study.overrides_of(run.system),
        *stage.set,
        *run.point,
        f"run.seed={run.seed}",
    ]
    begins = run.start is not None or any(item.startswith("start.model=") for item in said)
    if begins or all(each.start is None for each in study.stages.values()):
        return said
    return [item for item in said if not item.startswith("start.")]


def run_config(study: Study, run: StudyRun, own: Sequence[str], folder: Path) -> RunConfig:
    """Return a run's configuration, in a folder below `folder` of its name and checksum.

    own: the user's overrides. Raises UserError for what the user can mend.
    """
    lines = overrides_of(study, run)
    said_by = dict.fromkeys(lines, f"run {run.name} of the study")
    lines += [*own, "train.keep_checkpoints=0", f"run.dir={folder}"]
    if study.stages[run.stage].start is not None:
        _check_no_model(study, run, own)
    if run.start is not None:  # a folder that is there: the model itself may not be made yet
        lines.append(f"start.model={json.dumps(str(REPOSITORY))}")
    config = load_config(study.experiment, lines, said_by=said_by)
    if run.start is not None:
        begun = run_config(study, run.start, own, folder)
        _check_start(study, run, config, begun)
        start = config.start.model_copy(update={"model": begun.run.dir})
        config = config.model_copy(update={"start": start})
    where = folder / f"{run.name}-{config_hash(config)[:8]}"
    return config.model_copy(
        update={"run": config.run.model_copy(update={"dir": str(where.absolute())})}
    )


def _check_no_model(study: Study, run: StudyRun, own: Sequence[str]) -> None:
    """Raise UserError where a stage that begins with models is given another one."""
    given = next((item for item in own if item.partition("=")[0].strip() == "start.model"), None)
    if given is None:
        model = load_config(study.experiment, check_files=False).start.model
        given = None if model is None else f"start.model={model} of {study.experiment}"
    if given is not None:
        stage = study.stages[run.stage]
        raise UserError(f"{given} with stages.{run.stage}.start = {stage.start}; allowed: one")


def _check_start(study: Study, run: StudyRun, config: RunConfig, begun: RunConfig) -> None:
    """Raise UserError where a run cannot begin with the model of another, before that is trained.

    config: of the run. begun: of the other.
    """
    where = f"stages.{run.stage}.start: {run.start.name}"
    if begun.model.kind == "single":
        raise UserError(
            f"{where} is of model.kind single, a model for each task; allowed: a system of one "
            f"model, or {run.system} left out of stages.{run.start.stage}.systems (it then begins "
            f"with the encoder)"
        )
    gate, known = config.start.gate, _task_names(begun)
    for task in _task_names(config) if config.model.kind == "mt_tag" else []:
        asked = gate if isinstance(gate, str) else gate.get(task, "own")
        if asked != "random" and (task if asked == "own" else asked) not in known:
            raise UserError(
                f"{where} has no gate for {task} (start.gate = {asked}); allowed: start.gate = "
                f"{', '.join(known)} or random, said by stages.{run.stage}.set or its data"
            )


def _task_names(config: RunConfig) -> list[str]:
    """Return the names of a run's tasks, groups replaced by their members."""
    names = []
    for row in config.task_rows:
        names += expand_tasks([row]) if isinstance(row, str) else [row.name]
    return names


def recipe_hash(study: Study, run: StudyRun, own: Sequence[str]) -> str:
    """Return the checksum of what a run and those that it goes back to say, seeds apart."""
    said = [item for item in overrides_of(study, run) if not item.startswith("run.seed=")]
    start = None if run.start is None else recipe_hash(study, run.start, own)
    words = json.dumps([study.experiment, said, of_the_run(own), start])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def of_the_run(own: Sequence[str]) -> list[str]:
    """Return a user's overrides without those that say where this machine's data lies."""
    return [item for item in own if item.partition("=")[0] not in ("data.root", "data.cache")]


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
