"""New tasks for a trained model, whose own tasks stay in it.

With shared weights frozen only gates and heads of new tasks learn, and what the model says on its
own tasks stays as it was; else how far that has moved is told, on their dev rows.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.config.files import write_json
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.evaluation.outputs import task_result
from ds_moe_mtl.models.description import model_folder
from ds_moe_mtl.models.transfer import RANDOM
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.studies.finetune import AUTO, form_overrides, trained_description
from ds_moe_mtl.training.plan import make_plan, task_specs
from ds_moe_mtl.training.train import train

Say = Callable[[str], None]
KEPT = "kept_tasks.json"
PROBED = ("classification", "regression", "span", "ranking", "options")
"""Kinds of tasks whose donor's gate a linear probe on [CLS] can choose."""


@dataclass(frozen=True)
class Growth:
    """What is added to what.

    model: a run's or a model's folder. experiment: a YAML with the new tasks. frozen: whether
    shared weights stay as they are. gates: by new task, auto | random | a task of the model; "" is
    for those that are not named. limit: dev rows a task on which its own tasks are compared.
    """

    model: Path
    experiment: Path
    frozen: bool = True
    gates: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    limit: int = 1000


def growth_config(job: Growth, say: Say) -> RunConfig:
    """Return the run that trains the new tasks; chooses the gates that are "auto".

    Raises UserError for a folder that is no model of several tasks.
    """
    description = trained_description(str(job.model))
    if description is None:
        raise UserError(f"{job.model}: no trained model; allowed: a finished run or a model folder")
    if description["kind"] in ("single", "task_moe"):
        raise UserError(
            f"{job.model} is a {description['kind']} model; allowed: mt_dense, mt_switch, mt_tag"
        )
    values = form_overrides(description, str(job.model))
    values |= {"start.keep_tasks": "true", "start.train": "new" if job.frozen else "all"}
    base = [f"{key}={value}" for key, value in values.items()]
    config = load_config(job.experiment, [*base, *job.overrides])
    known = {task["name"] for task in description["tasks"]}
    specs = task_specs(config)
    new = [spec.name for spec in specs if spec.name not in known]
    if not new:
        raise UserError(
            f"tasks: the model has all of {', '.join(s.name for s in specs)}; allowed: a new one"
        )
    unknown = [name for name in job.gates if name and name not in new]
    if unknown:
        raise UserError(f"--gate: {unknown[0]!r} is no new task; allowed: {', '.join(new)}")
    if description["kind"] != "mt_tag":
        if job.gates:
            raise UserError(f"--gate: {job.model} is a {description['kind']} model, without gates")
        return config
    asked = {name: job.gates.get(name, job.gates.get("", AUTO)) for name in new}
    if AUTO in asked.values():
        asked = _chosen(config, asked, say)
    return load_config(job.experiment, [*base, f"start.gate={json.dumps(asked)}", *job.overrides])


def grow(config: RunConfig, job: Growth, ranks: Ranks, say: Say) -> tuple[int, list[dict] | None]:
    """Train, and return (0 or 75, the rows of `compare_kept` on rank 0 of a finished run)."""
    status = train(config, ranks, say)
    if status or ranks.rank:
        return status, None
    rows = compare_kept(config, job.limit)
    write_json(Path(config.run.dir) / KEPT, {"model": str(job.model), "tasks": rows})
    return status, rows


def compare_kept(config: RunConfig, limit: int) -> list[dict]:
    """Return for each task that the model had: its score before and after, and how far it moved.

    A row has "task", "metric", "before", "after", "examples" and "moved": the largest difference of
    an output, 0 where they are the same to the bit; or "task" and "error" where the task's data is
    not there.
    """
    before = MultiTaskModel.from_pretrained(model_folder(Path(config.start.model)))
    after = MultiTaskModel.from_pretrained(config.run.dir)
    rows = []
    for name, spec in before.specs.items():
        try:
            root = _data_root(config)
            split = encode_task(spec, "dev", before.tokenizer, root, config.data.cache, limit=limit)
        except UserError as error:
            rows.append({"task": name, "error": str(error)})
            continue
        outputs = [model.outputs(name, split) for model in (before, after)]
        scores = [task_result(spec, each, split, before.tokenizer) for each in outputs]
        rows.append(
            {
                "task": name,
                "metric": spec.metric,
                "before": scores[0]["value"],
                "after": scores[1]["value"],
                "examples": scores[0]["examples"],
                "moved": float(np.abs(outputs[0] - outputs[1]).max()),
            }
        )
    return rows


def _data_root(config: RunConfig) -> str | None:
    """Return where the model's own tasks lie: the root of its run, or of this one."""
    start = Path(config.start.model)
    for folder in (start, start.parent):
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml", check_files=False).data.root
    return config.data.root


def _chosen(config: RunConfig, asked: Mapping[str, str], say: Say) -> dict[str, str]:
    """Return the gates with each "auto" as the donor of the least held-out loss."""
    from ds_moe_mtl.studies.donors import EXAMPLES, donor_losses

    limit = min(EXAMPLES, config.train.limit_examples or EXAMPLES)
    limited = config.train.model_copy(update={"limit_examples": limit, "limit_dev": 1})
    plan = make_plan(config.model_copy(update={"train": limited}), task_specs(config), lambda _: _)
    chosen = dict(asked)
    for spec, split in zip(plan.specs, plan.train, strict=True):
        if asked.get(spec.name) != AUTO:
            continue
        if spec.kind not in PROBED:
            chosen[spec.name] = RANDOM
            say(f"gate of {spec.name}: random (no donor can be chosen for {spec.kind})")
            continue
        losses = donor_losses(Path(plan.source.folder), spec, split, config.run.seed)
        chosen[spec.name] = next(iter(losses))
        shown = ", ".join(f"{name} {loss:.3f}" for name, loss in list(losses.items())[:6])
        say(f"gate of {spec.name}: {chosen[spec.name]} (held-out loss, {limit} rows: {shown})")
    return chosen
