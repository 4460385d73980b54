"""What tasks and an encoder need of each other: heads, lengths, kinds that go together."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.models.heads import HeadSpec
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.text2text import as_text

OPTIONS_HEAD = "options"
"""The one head that scores the options of every task that has them."""

_FORMS = {"multilabel": "labels", "tags": "tags", "answer": "answer"}


def head_specs(specs: Sequence[TaskSpec]) -> list[HeadSpec]:
    """Return what the heads need to know of the tasks."""
    return [
        HeadSpec(
            spec.name,
            spec.num_outputs,
            spec.kind == "span",
            OPTIONS_HEAD if spec.kind == "options" else "",
            _FORMS.get(spec.kind, "classes"),
            spec.class_weights,
        )
        for spec in specs
    ]


def balanced(spec: TaskSpec, train: EncodedSplit) -> TaskSpec:
    """Return the row with the class weights that follow from its training rows, if it asks so.

    Of a class: all rows (words, for tags) over the number of classes and its own, so that the mean
    over the rows is 1. Of one of several labels: the rows without it over those with it. A class
    without rows has weight 1.
    """
    if not spec.balanced:
        return spec
    if spec.kind == "multilabel":
        counts = train.label_sets.sum(axis=0, dtype=np.int64)
        weights = (len(train.label_sets) - counts) / np.maximum(counts, 1)
    else:
        labels = train.unit_labels if spec.kind == "tags" else train.labels.astype(np.int64)
        counts = np.bincount(labels, minlength=len(spec.labels))
        weights = counts.sum() / (len(spec.labels) * np.maximum(counts, 1))
    weights = np.where((counts > 0) & (weights > 0), weights, 1.0)
    return replace(spec, class_weights=tuple(weights.tolist()))


def check_lengths(
    config: RunConfig, specs: list[TaskSpec], longest: int, say: Callable[[str], None]
) -> None:
    """Say where a task's own default is cut to the encoder's positions.

    Raises UserError for a length that was asked for and is more than they are.
    """
    asked = {task.name: task.max_length for task in config.task_rows if not isinstance(task, str)}
    if config.train.max_length is not None:
        asked = dict.fromkeys((spec.name for spec in specs), config.train.max_length)
    key = "max_length" if config.train.max_length is None else "train.max_length"
    for name, length in asked.items():
        if length is not None and length > longest:
            raise UserError(
                f"tasks: {name!r}: {key} = {length} tokens; the encoder takes at most {longest}"
            )
    cut = [spec.name for spec in specs if not asked.get(spec.name) and spec.max_length > longest]
    if cut:
        say(f"note: texts of {', '.join(cut)} are cut at {longest} tokens, the encoder's positions")


def fitting_rows(specs: list[TaskSpec], generate: bool, config: RunConfig) -> list[TaskSpec]:
    """Return the rows as the model takes them: all as text where it generates.

    Raises UserError for a task or a kind of model that does not go with the encoder.
    """
    if not generate:
        text = [spec.name for spec in specs if spec.kind == "text"]
        if text:
            raise UserError(
                f"tasks: {text[0]!r} has free-form answers, which model.encoder = "
                f"{config.model.encoder} cannot give; allowed: tasks with options, or BART"
            )
        return specs
    if config.model.kind not in ("mt_dense", "task_moe"):
        raise UserError(
            f"model.kind = {config.model.kind} with model.encoder = {config.model.encoder}, which "
            f"generates; allowed: mt_dense, task_moe"
        )
    other = [spec.name for spec in specs if spec.kind not in ("options", "text")]
    if other:
        raise UserError(
            f"tasks: {other[0]!r} is no text-to-text task, but model.encoder = "
            f"{config.model.encoder} generates; allowed: gym tasks, gym_train"
        )
    return [as_text(spec) for spec in specs]
