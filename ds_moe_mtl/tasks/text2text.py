"""The 160 CrossFit tasks as rows: text in, text out, where there are any with answer options.

crossfit.json holds the ontology, the random 120/20/20 partition and each task's metric, with
where they come from. A row's kind is "options" (score each option, take the best) where the
few-shot rows have options, else "text" (generate). A sequence-to-sequence model takes every task
as text: `as_text`.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from ds_moe_mtl.tasks.spec import TaskSpec

FOLDER = "fewshot_gym"
PREFIX = "gym-"
SEEDS = (13, 21, 42, 87, 100)
"""The five samples of 16 rows that every task has."""

MOST_OPTIONS = 12
"""Our choice: each option is a sequence of its own, so discovery's 174 would outweigh all else."""

MAX_LENGTH = 128  # our choice; the paper's public code takes 512
PARTITIONS = ("train", "dev", "test")


@dataclass(frozen=True)
class CrossFitTask:
    """One task of the few-shot gym; options: the most a row has, 0 for free-form answers."""

    name: str
    category: str
    metric: str
    partition: str
    options: int
    test_rows: int
    in_gym: bool


@cache
def crossfit_tasks() -> dict[str, CrossFitTask]:
    """Every CrossFit task by CrossFit's own name."""
    text = files("ds_moe_mtl.tasks").joinpath("crossfit.json").read_text(encoding="utf-8")
    return {row[0]: CrossFitTask(*row) for row in json.loads(text)["tasks"]}


@cache
def gym_tasks() -> dict[str, TaskSpec]:
    """The rows of all CrossFit tasks by our name: gym-<CrossFit's name>."""
    return {PREFIX + task.name: _row(task) for task in crossfit_tasks().values()}


@cache
def gym_groups() -> dict[str, tuple[str, ...]]:
    """Groups of the random partition.

    gym_train, gym_dev, gym_test: what the few-shot rows have of the three parts, for a model that
    generates. gym_upstream, gym_unseen: the tasks of train and test that an encoder can score (at
    most MOST_OPTIONS options; unseen ones have test rows).
    """
    groups = {
        f"gym_{part}": tuple(
            PREFIX + task.name
            for task in crossfit_tasks().values()
            if task.partition == part and task.in_gym
        )
        for part in PARTITIONS
    }
    scored = [task for task in crossfit_tasks().values() if 2 <= task.options <= MOST_OPTIONS]
    groups["gym_upstream"] = tuple(
        PREFIX + task.name for task in scored if task.partition == "train"
    )
    groups["gym_unseen"] = tuple(
        PREFIX + task.name for task in scored if task.partition == "test" and task.test_rows
    )
    return groups


def crossfit_name(spec_name: str) -> str:
    """CrossFit's own name of a task."""
    return spec_name.removeprefix(PREFIX)


def category(spec_name: str) -> str:
    """A task's place in the ontology, "qa/binary"; "" for a task that is not CrossFit's."""
    task = crossfit_tasks().get(crossfit_name(spec_name))
    return task.category if task else ""


def of_seed(spec: TaskSpec, seed: int) -> TaskSpec:
    """The row that reads one few-shot sample (16 rows to train on, 16 for dev)."""
    return replace(spec, train_split=f"train@{seed}", dev_splits=(f"dev@{seed}",))


def on_test(spec: TaskSpec) -> TaskSpec:
    """The row whose "dev" is the task's test rows."""
    return replace(spec, dev_splits=("test",))


def as_text(spec: TaskSpec) -> TaskSpec:
    """The row for a model that generates the answer, options or not."""
    return replace(spec, kind="text") if spec.kind == "options" else spec


def _row(task: CrossFitTask) -> TaskSpec:
    return TaskSpec(
        name=PREFIX + task.name,
        kind="options" if task.options else "text",
        text=("input",),
        label="output",
        metric=_metric(task),
        max_length=MAX_LENGTH,
        folder=FOLDER,
        train_split="train",
        dev_splits=("dev",),
        choices=("options",),
    )


def _metric(task: CrossFitTask) -> str:
    """CrossFit's metric, except where a class is an answer that occurs once (codah): accuracy."""
    if task.metric == "macro_f1" and task.category.endswith("multiple-choice qa"):
        return "accuracy"
    return task.metric
