"""What a run's folder holds, read without its model and its data.

A run of model.kind single is a folder of parts, one model a task; every other run is its own part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ds_moe_mtl.analysis.report import Course, read_course
from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.config.files import read_json
from ds_moe_mtl.evaluation.predictions import FILE as PREDICTIONS
from ds_moe_mtl.evaluation.predictions import TaskPredictions, read_predictions
from ds_moe_mtl.models.description import CONFIG, encoder_depth, read_description
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tracking.metrics_log import read_metrics

METRICS = "metrics.jsonl"
RESULTS = "results.json"


@dataclass(frozen=True)
class Part:
    """One trained network of a run. name: of a part, its task; "" where the run is one network."""

    name: str
    folder: Path
    course: Course
    description: Mapping | None  # the model folder's config.json
    config: RunConfig | None

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """The tasks of the model folder, where there is one."""
        if self.description is None:
            return {}
        rows = [TaskSpec.from_dict(values) for values in self.description["tasks"]]
        return {spec.name: spec for spec in rows}

    def sparse_layers(self, found: int) -> tuple[tuple[int, ...], str]:
        """Return the numbers, from 0, of the `found` layers with experts, and a note where unknown.

        Where the model is not there and moe.layers depends on its depth, they are counted.
        """
        if self.description is not None and self.description.get("routing"):
            chosen = self.description["routing"].get("layers", "all")
            depth = encoder_depth(self.description)
        else:
            chosen = "all" if self.config is None else self.config.moe.layers
            depth = found if chosen == "all" else 1 + max(chosen) if _listed(chosen) else 0
        if depth:
            numbers = sparse_layers(chosen, depth)
            if len(numbers) == found:
                return numbers, ""
        return tuple(range(found)), "Layers are counted among those with experts."


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder tells it; what is not there is None or empty.

    results: results.json, {} of an unfinished run.
    """

    folder: Path
    name: str
    config: RunConfig | None
    config_text: str
    environment: Mapping
    results: Mapping
    parts: tuple[Part, ...]
    no_predictions: str  # why there are none, "" where there are

    @cached_property
    def predictions(self) -> dict[str, TaskPredictions]:
        """What the run gave for its dev rows, by task."""
        return {} if self.no_predictions else read_predictions(self.folder)

    @cached_property
    def specs(self) -> dict[str, TaskSpec]:
        """The rows of the tasks whose model folders are there."""
        return {name: spec for part in self.parts for name, spec in part.specs.items()}

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Every task that the run tells of, in order."""
        names = [*self.results.get("tasks", {}), *self.specs]
        for part in self.parts:
            names += [*part.course.named("loss/"), *part.course.named("dev/")]
        return tuple(dict.fromkeys(names))

    @property
    def kind(self) -> str:
        """model.kind, "" where the folder does not say."""
        known = self.results.get("model_kind")
        return known or (self.config.model.kind if self.config is not None else "")

    @property
    def state(self) -> str:
        """How far it came, in words."""
        done = self.results.get("steps")
        ending = "complete" if done is not None else "not complete"
        if done is None:
            done = max(part.course.last_step for part in self.parts)
        return f"{done:,} step{'s' * (done != 1)}, {ending}"

    def part_of(self, task: str) -> Part:
        """Return the part that trained a task."""
        for part in self.parts:
            if task in part.specs or part.name == task:
                return part
        return self.parts[0]


def read_run(folder: Path) -> StoredRun:
    """Return what is in a run's folder. Raises UserError for what is no run's."""
    results = read_json(folder / RESULTS) or {}
    if not isinstance(results.get("tasks", {}), Mapping):
        raise UserError(f"{folder / RESULTS}: no results of a run (tasks is no map)")
    config, text = _config(folder)
    inner = sorted({path.parent for path in folder.glob(f"*/{METRICS}")})
    is_single = "single" in (results.get("model_kind"), config and config.model.kind)
    if (folder / METRICS).is_file() or (results and not inner):
        parts = [_part("", folder)]
    elif is_single and inner:
        parts = [_part(path.name.removesuffix(".task"), path) for path in inner]
    else:
        parts = []
    if not any(part.course.series for part in parts) and not results:
        names = f"; its runs: {', '.join(path.name for path in inner)}" if inner else ""
        raise UserError(f"{folder}: no metrics.jsonl with a logged step{names}; allowed: a run")
    return StoredRun(
        folder,
        folder.resolve().name,
        config,
        text,
        read_json(folder / "environment.json") or {},
        results,
        tuple(parts),
        _no_predictions(folder, results, is_single),
    )


def distinct_names(runs: Sequence[StoredRun]) -> list[str]:
    """Return what to call each run: its folder's name, with its parents' where two are alike."""
    names = [run.name for run in runs]
    for depth in range(2, 6):
        if len(set(names)) == len(names):
            return names
        names = ["/".join(run.folder.resolve().parts[-depth:]) for run in runs]
    return [str(run.folder.resolve()) for run in runs]


def _part(name: str, folder: Path) -> Part:
    rows = read_metrics(folder / METRICS)
    try:
        description = read_description(folder / "model")
    except ValueError:  # an unfinished run has none
        if (folder / "model" / CONFIG).exists():
            raise UserError(f"{folder / 'model' / CONFIG}: no model's description") from None
        description = None
    return Part(name, folder, read_course(rows, folder.name), description, _config(folder)[0])


def _config(folder: Path) -> tuple[RunConfig | None, str]:
    path = folder / "config.yaml"
    if not path.is_file():
        return None, ""
    return load_config(path, check_files=False), path.read_text(encoding="utf-8")


def _no_predictions(folder: Path, results: Mapping, is_single: bool) -> str:
    if not results:
        return "the run is not complete"
    there = (folder / PREDICTIONS).is_file() or (is_single and any(folder.glob(f"*/{PREDICTIONS}")))
    return "" if there else f"the run has no {PREDICTIONS}"


def _listed(layers) -> bool:
    return not isinstance(layers, str)
