"""Stage two: one task from a trained model, or from an encoder for the Single-Task baseline.

Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.5 and appendix A.3.2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds_moe_mtl.config import EXPERIMENTS, RunConfig, UserError, load_config
from ds_moe_mtl.config.files import read_json, write_json
from ds_moe_mtl.models.description import CONFIG, model_folder, read_description, read_state
from ds_moe_mtl.models.pretrained import state_hash
from ds_moe_mtl.models.transfer import form_of
from ds_moe_mtl.ranks.rendezvous import Ranks
from ds_moe_mtl.studies.trials import LEADERBOARD, Trial, leaderboard, make_trials, run_trials
from ds_moe_mtl.tasks import get_task
from ds_moe_mtl.training.plan import make_plan, task_specs

Say = Callable[[str], None]
EXPERIMENT = EXPERIMENTS / "finetune.yaml"
AUTO = "auto"
GATES = "gates.json"


@dataclass(frozen=True)
class FineTuning:
    """What is to be fine-tuned.

    model: a run's or a model's folder, or an encoder by name. gate: own, random, auto or a task of
    the model; None: own where the model has the task, else auto. folder: where all its runs lie.
    experiment: a YAML with what is not said here. grid: values by dotted key.
    """

    model: str
    task: str
    folder: Path
    gate: str | None = None
    head: str = "auto"
    experiment: Path = EXPERIMENT
    overrides: tuple[str, ...] = ()
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: int = 1
    keep: str = "best"


def finetune(job: FineTuning, ranks: Ranks, say: Say) -> tuple[int, list[dict]]:
    """Run or resume a fine-tuning; return (0 or 75, the leaderboard's rows).

    The process group stays open for another one: the caller ends it. Raises UserError, on every
    rank, for what the user can mend.
    """
    trials = plan_trials(job, ranks, say)
    status = run_trials(trials, job.folder, ranks, say, job.keep)
    return status, leaderboard(trials)


def plan_trials(job: FineTuning, ranks: Ranks, say: Say) -> list[Trial]:
    """Return the runs of a job; picks the donor where the gate is "auto"."""
    base = _base(job)
    gate = job.gate

    def make(overrides: Sequence[str]) -> RunConfig:
        chosen = [] if gate is None else [f"start.gate={gate}"]
        return load_config(job.experiment, [*base, *chosen, *job.overrides, *overrides])

    description = trained_description(job.model)
    if description is None or description["kind"] != "mt_tag":
        if gate is not None:
            kind = "an encoder" if description is None else f"a {description['kind']} model"
            raise UserError(f"--gate {gate}: {job.model} is {kind}, without gates by task")
    elif gate is None or gate == AUTO:
        known = [head["name"] for head in description["heads"]]
        asked, gate = gate, "own"
        if asked == AUTO or job.task not in known:
            gate = pick_donor(job, make([f"run.dir={job.folder}"]), ranks, say)
    return make_trials(make, job.folder, job.grid, job.seeds)


def trained_description(model: str) -> dict | None:
    """Return the description of a trained model's folder; None for an encoder.

    Raises UserError for a run's folder that holds no model yet.
    """
    folder = model_folder(Path(model))
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if config is not None and "heads" in config:
        try:
            return read_description(folder)
        except ValueError as error:
            raise UserError(str(error)) from error
    if (Path(model) / "config.yaml").is_file():
        raise UserError(f"{model}: the run has no model/; allowed: a finished run of one model")
    return None


def pick_donor(job: FineTuning, config: RunConfig, ranks: Ranks, say: Say) -> str:
    """Return the donor whose gate has the least held-out loss on the task's few examples.

    Its losses are kept in <folder>/gates.json and computed once for the same model and examples.
    """
    from ds_moe_mtl.studies.donors import EXAMPLES, donor_losses

    train = config.train
    limit = min(EXAMPLES, train.limit_examples or EXAMPLES)
    limited = train.model_copy(update={"limit_examples": limit, "limit_dev": 1})
    plan = make_plan(config.model_copy(update={"train": limited}), task_specs(config), lambda _: _)
    split = plan.train[0]
    folder = Path(plan.source.folder)
    about = {
        "model": job.model,
        "sha256": state_hash(read_state(folder)),
        "task": job.task,
        "examples": split.num_examples,
        "content": split.content_hash(),
        "sample": [config.data.sample, config.data.sample_seed],
    }
    found = read_json(job.folder / GATES)
    if found is None or any(found.get(key) != value for key, value in about.items()):
        losses = donor_losses(folder, plan.specs[0], split, config.run.seed)
        found = {**about, "losses": losses, "gate": next(iter(losses))}
        if ranks.rank == 0:
            job.folder.mkdir(parents=True, exist_ok=True)
            write_json(job.folder / GATES, found)
    shown = ", ".join(f"{name} {loss:.3f}" for name, loss in found["losses"].items())
    say(f"gate: {found['gate']} (held-out loss on {split.num_examples} examples: {shown})")
    return found["gate"]


def _base(job: FineTuning) -> list[str]:
    """Return the overrides that a job's model and task make."""
    description = trained_description(job.model)
    config = _run_config(Path(job.model))
    rows = [*_rows_of(job.experiment), *(config.task_rows if config else ())]
    named = [row for row in rows if not isinstance(row, str) and row.name == job.task]
    if not named:
        _check_known(job, description)
    task = json.dumps(named[0].model_dump(mode="json")) if named else json.dumps(job.task)
    values = {"tasks": f"[{task}]"}
    if config is not None:
        values["data.root"] = json.dumps(config.data.root)
        values["data.cache"] = json.dumps(config.data.cache)
    if description is None:
        values |= {"model.kind": "single", "model.encoder": job.model}
    else:
        values |= form_overrides(description, job.model) | {"start.head": job.head}
    return [f"{key}={value}" for key, value in values.items()]


def form_overrides(description: Mapping, model: str) -> dict[str, str]:
    """Return what a configuration has to say to start from a trained model, by dotted key."""
    values = {"model.kind": description["kind"], "start.model": model}
    values["model.pooler"] = json.dumps(description["pooler"])
    for key, value in form_of(description).items():
        values[f"moe.{key}"] = str(list(value) if isinstance(value, tuple) else value)
    return values


def _check_known(job: FineTuning, description: Mapping | None) -> None:
    """Raise UserError for a task that nobody knows; it lists those of the model."""
    try:
        get_task(job.task)
    except UserError as error:
        if description is None:
            there = f"{job.model} is no trained model, whose tasks it could be"
        else:
            there = f"the model's tasks: {', '.join(task['name'] for task in description['tasks'])}"
        raise UserError(f"--task {job.task}: {there}; {error}") from None


def _rows_of(experiment: Path) -> Sequence:
    """Return the tasks of the YAML that is asked for: the task's row may be there."""
    return load_config(experiment).task_rows if experiment != EXPERIMENT else ()


def _run_config(folder: Path) -> RunConfig | None:
    """Return the configuration of the run that a folder (or its model/) is of, or None."""
    for file in (folder / "config.yaml", folder.parent / "config.yaml"):
        if file.is_file() and folder.is_dir():
            return load_config(file, check_files=False)
    return None


def leaderboard_path(job: FineTuning) -> Path:
    """Return where a job's leaderboard is written."""
    return job.folder / LEADERBOARD
