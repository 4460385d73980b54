"""A run of a study: its name, what it says over the experiment, its configuration and checksum."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.config.document import parse_yaml
from ds_moe_mtl.config.files import displayed, read_text
from ds_moe_mtl.config.load import find_experiment
from ds_moe_mtl.studies.evidence.schema import Study, key_of
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


def overrides_of(study: Study, run: StudyRun, own: Sequence[str] = ()) -> list[str]:
    """Return what a run says over the study's experiment; its folder is not among it.

    In a study with second stages what is said of start.* is about the runs that begin with a model,
    and left out of the others. own: the user's overrides, which may name a model too.
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
    begins = run.start is not None or "start.model" in map(key_of, (*said, *own))
    if begins or all(each.start is None for each in study.stages.values()):
        return said
    return [item for item in said if not item.startswith("start.")]


def run_config(study: Study, run: StudyRun, own: Sequence[str], folder: Path) -> RunConfig:
    """Return a run's configuration, in a folder below `folder` of its name and checksum.

    own: the user's overrides. Raises UserError for what the user can mend.
    """
    lines = overrides_of(study, run, own)
    begun = None if run.start is None else run_config(study, run.start, own, folder)
    model = None if begun is None else begun.run.dir
    if study.stages[run.stage].start is not None:
        _check_no_model(study, run, own)
    if begun is not None:
        lines.append(f"start.model={json.dumps(model)}")
    said_by = dict.fromkeys(lines, f"run {run.name} of the study")
    lines += [*own, "train.keep_checkpoints=0", f"run.dir={json.dumps(str(folder))}"]
    config = load_config(study.experiment, lines, said_by=said_by, to_be_made=model)
    if begun is not None:
        known = _tasks_of_model(study, run.start, begun, own, folder)
        _check_start(run, config, begun, known)
    where = folder / f"{run.name}-{run_hash(run, config)[:8]}"
    return config.model_copy(
        update={"run": config.run.model_copy(update={"dir": str(where.absolute())})}
    )


def _check_no_model(study: Study, run: StudyRun, own: Sequence[str]) -> None:
    """Raise UserError where a stage that begins with models is given another one."""
    given = next((item for item in own if key_of(item) == "start.model"), None)
    if given is None:
        file = find_experiment(Path(study.experiment))
        section = (parse_yaml(read_text(file), displayed(file)).values or {}).get("start")
        model = section.get("model") if isinstance(section, dict) else None
        given = None if model is None else f"start.model={model} of {study.experiment}"
    if given is not None:
        start = study.stages[run.stage].start
        raise UserError(f"{given} with stages.{run.stage}.start = {start}; allowed: one of them")


def _check_start(
    run: StudyRun, config: RunConfig, begun: RunConfig, known: Sequence[str] | None
) -> None:
    """Raise UserError for kinds, gates and heads that do not fit the model a run begins with.

    config: of the run. begun: of the one that leaves the model. known: the model's tasks, None
    where they are not known before it is there.
    """
    where = f"stages.{run.stage}.start: {run.start.name}"
    if begun.model.kind == "single":
        raise UserError(
            f"{where} is of model.kind single, a model for each task; allowed: a system of one "
            f"model, or {run.system} left out of stages.{run.start.stage}.systems (it then begins "
            f"with the encoder)"
        )
    if config.model.kind != begun.model.kind:
        raise UserError(
            f"{where} is of model.kind {begun.model.kind}, and run {run.name} of "
            f"{config.model.kind}; allowed: the same"
        )
    start = config.start
    for task in _task_names(config) if known is not None else []:
        asked = start.gate if isinstance(start.gate, str) else start.gate.get(task, "own")
        lacks_gate = asked != "random" and (task if asked == "own" else asked) not in known
        if config.model.kind == "mt_tag" and lacks_gate:
            raise UserError(
                f"{where} has no gate for {task} (start.gate = {asked}); allowed: start.gate = "
                f"{', '.join(known)} or random, said by stages.{run.stage}.set or its data"
            )
        if start.head == "keep" and task not in known:
            raise UserError(
                f"{where} has no head for {task} (start.head = keep); it has: {', '.join(known)}; "
                f"allowed: auto or new"
            )


def _tasks_of_model(
    study: Study, run: StudyRun, config: RunConfig, own: Sequence[str], folder: Path
) -> list[str] | None:
    """Return the tasks of the model that a run leaves; None where it keeps those of a foreign one.

    config: of that run.
    """
    if not config.start.keep_tasks:
        return _task_names(config)
    if run.start is None:
        return None
    begun = run_config(study, run.start, own, folder)
    before = _tasks_of_model(study, run.start, begun, own, folder)
    return None if before is None else list(dict.fromkeys([*before, *_task_names(config)]))


def _task_names(config: RunConfig) -> list[str]:
    """Return the names of a run's tasks, groups replaced by their members."""
    names = []
    for row in config.task_rows:
        names += expand_tasks([row]) if isinstance(row, str) else [row.name]
    return names


def recipe_hash(study: Study, run: StudyRun, own: Sequence[str]) -> str:
    """Return the checksum of what a run and those that it goes back to say, seeds apart."""
    said = [item for item in overrides_of(study, run, own) if key_of(item) != "run.seed"]
    start = None if run.start is None else recipe_hash(study, run.start, own)
    words = json.dumps([study.experiment, said, of_the_run(own), start])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def of_the_run(own: Sequence[str]) -> list[str]:
    """Return a user's overrides without those that say where this machine's data lies."""
    return [item for item in own if key_of(item) not in ("data.root", "data.cache")]


def run_hash(run: StudyRun, config: RunConfig) -> str:
    """Return the checksum of what a run's YAML and overrides say.

    Paths of this machine are no part of it, nor is what is left at its default: lines stay good
    when a key is added. A study says every key that it is about.
    """
    said = config.model_dump(mode="json", exclude_unset=True)
    for section, keys in _NO_PART.items():
        for key in keys:
            said.get(section, {}).pop(key, None)
    said.pop("track", None)
    said["tasks"] = [_without_folders(task) for task in said["tasks"]]
    if run.start is not None:  # the folder that it begins with has a name that ends with a checksum
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
