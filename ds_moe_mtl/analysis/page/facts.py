"""What was trained on what: a run in a few lines, its tasks, its configuration, its machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from ds_moe_mtl.analysis.page.devdata import DevRows
from ds_moe_mtl.analysis.page.similarity import numeric
from ds_moe_mtl.analysis.page.stored import StoredRun
from ds_moe_mtl.models.description import WEIGHTS
from ds_moe_mtl.models.multitask import SPARSE_KINDS
from ds_moe_mtl.tasks.text2text import FOLDER, category

Fact = tuple[str, Sequence[str]]
"""A row of a table: what it is, and a cell a run."""

_EMPTY = "–"


@dataclass(frozen=True)
class TaskFacts:
    """One task: what is known of it; None and () where it is not."""

    name: str
    kind: str
    metric: str
    train_rows: int | None
    dev_rows: int | None
    classes: tuple[str, ...]


def run_facts(runs: Sequence[StoredRun]) -> list[Fact]:
    """Return what tells one run from another: kind, encoder, routing, steps, machine, sizes."""
    rows = [_facts(run) for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in names if any(row.get(name) for row in rows)]
    return [(name, [row.get(name) or _EMPTY for row in rows]) for name in names]


def task_facts(runs: Sequence[StoredRun]) -> list[TaskFacts]:
    """Return every task of the runs, as the first run that has it tells of it."""
    found: dict[str, TaskFacts] = {}
    for run in runs:
        for name in run.tasks:
            found.setdefault(name, _task(run, name))
    return list(found.values())


def config_differences(runs: Sequence[StoredRun]) -> list[Fact]:
    """Return the keys of the configuration in which runs differ, and their values."""
    flat = [_flat(run.config.model_dump(mode="json")) if run.config else {} for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    return [
        (key, [_said(values.get(key)) for values in flat])
        for key in keys
        if key != "run.dir" and len({_said(values.get(key)) for values in flat}) > 1
    ]


def environment_facts(run: StoredRun) -> list[tuple[str, str]]:
    """Return the environment of a run as lines."""
    return [(key, _said(value)) for key, value in _flat(run.environment).items() if value != ""]


def own_features(
    run: StoredRun, tasks: Sequence[str], rows: Mapping[str, DevRows]
) -> dict[str, np.ndarray]:
    """Return our features of tasks: size, rows, classes, mean length, kind; NaN where unknown."""
    facts = [_task(run, name) for name in tasks]
    specs = [run.specs.get(name) for name in tasks]
    sizes = {
        "published size (log10)": [spec and spec.published_size for spec in specs],
        "training rows (log10)": [fact.train_rows for fact in facts],
        "classes": [len(fact.classes) for fact in facts],
        "mean tokens of a dev row": [rows[t].tokens if t in rows else None for t in tasks],
    }
    found = {
        name: np.array([np.nan if not v else np.log10(v) if "log10" in name else v for v in values])
        for name, values in sizes.items()
    }
    words: dict[str, list] = {"kind": [fact.kind or None for fact in facts]}
    if any(spec is not None and spec.folder == FOLDER for spec in specs):
        words["category"] = [category(task) or None for task in tasks]
    return {**found, **numeric(words)}


def _facts(run: StoredRun) -> dict[str, str]:
    config, environment = run.config, run.environment
    best = run.results.get("best_step")
    facts = {
        "folder": str(run.folder),
        "state": run.state + (f"; the model is that of step {best:,}" if best else ""),
        "model": run.kind,
        "encoder": str(run.results.get("encoder", {}).get("name", environment.get("encoder", ""))),
        "experts": _experts(run),
        "weights": f"{environment['weights']:,}" if environment.get("weights") else "",
        "seed": str(run.results.get("seed", config.run.seed if config else "")),
        "machine": _machine(environment),
        "precision": str(environment.get("precision") or ""),
        "memory": _memory(run),
    }
    if config is not None:
        train = config.train
        facts["length"] = f"{train.epochs:g} epochs" if train.epochs else f"{train.steps:,} steps"
        facts["batch"] = f"{train.batch_size} examples, learning rate {train.lr:g}"
        facts["sampling"] = config.mixture.sampling
    return facts


def _experts(run: StoredRun) -> str:
    config = run.config
    if config is None or run.kind not in (*SPARSE_KINDS, "task_moe"):
        return ""
    if run.kind == "task_moe":
        return f"{config.router.experts} whole layers each, route {config.router.route}"
    moe = config.moe
    gates = "one gate per task" if run.kind == "mt_tag" else "one gate for all tasks"
    return (
        f"{moe.num_experts} in layers {_said(moe.layers)}, {gates}, gate scale {moe.gate_scale}, "
        f"by {moe.route_by}, {moe.combine}, {moe.dispatch}"
    )


def _machine(environment: Mapping) -> str:
    if "device" not in environment:
        return ""
    ranks = environment.get("world_size", 1)
    return f"{environment['device']}, {ranks} rank{'s' * (ranks != 1)}"


def _memory(run: StoredRun) -> str:
    """Return the size of the model's file, and the memory that the steps took where it is there."""
    files = [part.folder / "model" / WEIGHTS for part in run.parts]
    sizes = [path.stat().st_size for path in files if path.is_file()]
    said = [f"model file{'s' * (len(sizes) > 1)} {sum(sizes) / 2**20:,.0f} MiB"] if sizes else []
    for key, of in (("host_memory_gib", "process"), ("gpu_memory_gib", "GPU")):
        found = [
            part.course.series[key][1].max() for part in run.parts if key in part.course.series
        ]
        if found:
            said.append(f"{of} {max(found):.2f} GiB at most (rank 0)")
    return "; ".join(said)


def _task(run: StoredRun, name: str) -> TaskFacts:
    spec, predictions = run.specs.get(name), run.predictions.get(name)
    data, result = run.results.get("data", {}).get(name, {}), run.results.get("tasks", {})
    result = result.get(name, {})
    kind = spec.kind if spec is not None else predictions.kind if predictions is not None else ""
    classes = data.get("classes") or (spec.labels if spec is not None else ())
    metric = result.get("metric") or (spec.metric if spec is not None else "")
    return TaskFacts(
        name, kind, metric, data.get("examples"), result.get("examples"), tuple(map(str, classes))
    )


def _flat(values: Mapping, before: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def _said(value: object) -> str:
    if value is None:
        return _EMPTY
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        .removesuffix("...\n")
        .strip()
    )
