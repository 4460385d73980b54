"""A user's own files, or a data set of the Hub, as a task.

Kind and labels follow from the label column; dev rows are cut from the training rows where there
are no others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ds_moe_mtl.config import KnownTask, OwnTask, UserError
from ds_moe_mtl.data.hub import HubSplit, hub_split
from ds_moe_mtl.data.own_kinds import (
    changed_spec,
    check_keys,
    own_kind,
    own_labels,
    own_metrics,
    own_weights,
)
from ds_moe_mtl.data.rows import check_text, label_name
from ds_moe_mtl.data.tables import ROW, Columns, read_table
from ds_moe_mtl.tasks import TaskSpec, expand_tasks, get_task, known_tasks, task_groups
from ds_moe_mtl.tasks.text2text import gym_tasks

DEFAULT_LENGTH = 128  # tokens, as most of the paper's tasks


class OwnData(NamedTuple):
    """A user's task as a row, why it is of its kind, and the rows of its train file."""

    spec: TaskSpec
    why: str
    columns: Columns


def known_specs(entry: str | KnownTask) -> list[TaskSpec]:
    """The rows that an entry of `tasks` stands for: a known task's name, a group, a changed task.

    Raises UserError for names that are not known.
    """
    if isinstance(entry, KnownTask):
        return [changed_spec(entry)]
    return [get_task(name) for name in expand_tasks([entry])]


def own_spec(task: OwnTask) -> TaskSpec:
    """The task as a row; see `read_own`."""
    return read_own(task).spec


def read_own(task: OwnTask) -> OwnData:
    """The task as a row: the kind, the labels and the number of training rows are its data's.

    Labels that are text or whole numbers make a classification, others a regression, unless the
    task says (text: the label is generated) or has a column of options; lists of labels and
    several label columns make a multilabel task, lists beside lists of words tags, a column
    answer_start an answer. Raises UserError for a name that is taken, files that cannot be read,
    labels that are missing or no classes, and a metric that cannot score them.
    """
    if task.name in known_tasks() or task.name in task_groups() or task.name in gym_tasks():
        raise UserError(f"tasks: {task.name!r} is the name of a known task; choose another")
    extra = [name for name in (task.options, task.answer_start) if name]
    label_columns = (task.label,) if isinstance(task.label, str) else task.label
    columns = [*task.text, *label_columns, *extra]
    if len(set(columns)) < len(columns):
        raise UserError(f"tasks: {task.name!r} names a column twice: {', '.join(columns)}")
    hub = None if task.hub is None else (task.hub, task.hub_config or "")
    origin = own_origin(task, task.train)
    rows = _rows(task.name, hub, task.train, columns, label_columns[0])
    if not rows[columns[0]]:
        raise UserError(f"{origin}: the file has no rows; it needs at least one")
    kind, why = own_kind(task, rows)
    check_keys(task, kind)
    labels = own_labels(task, kind, rows, origin)
    metrics = own_metrics(task, kind, labels, rows)
    spec = TaskSpec(
        name=task.name,
        kind=kind,
        text=tuple(task.text),
        label=label_columns[0],
        labels=labels,
        choices=(task.options,) if task.options else (),
        metric=metrics[0],
        max_length=task.max_length or DEFAULT_LENGTH,
        published_size=len(rows[columns[0]]),
        hub=hub,
        train_file=task.train,
        dev_file=task.dev or "",
        dev_fraction=task.dev_fraction,
        test_file=task.test or "",
        dev_by=task.dev_by if kind == "classification" else "text",
        label_columns=label_columns if len(label_columns) > 1 else (),
        separator=task.separator,
        answer_start=task.answer_start or "",
        longest_answer=task.longest_answer,
        prefix=task.prefix,
        metrics=metrics if len(metrics) > 1 else (),
        class_weights=own_weights(task, labels),
        balanced=task.class_weights == "balanced",
        loss_weight=task.loss_weight,
        sampling_weight=task.sampling_weight,
        threshold=task.threshold,
    )
    return OwnData(spec, why, rows)


def own_texts(task: OwnTask, where: str) -> Columns:
    """The text columns of a user's file, or of a split of a data set of the Hub."""
    hub = None if task.hub is None else (task.hub, task.hub_config or "")
    return _rows(task.name, hub, where, task.text, task.text[0])


def own_origin(task: OwnTask, where: str) -> str:
    """What to call a user's file, or a split of a data set of the Hub, in messages."""
    if task.hub is None:
        return where
    return own_hub_split(task.name, (task.hub, task.hub_config or ""), where).origin


def own_columns(spec: TaskSpec, split: str) -> Columns:
    """The rows of a user's "train", "validation" or "test" split, and ROW.

    Without a dev file the rows of the train file are parted by a hash of their texts: the dev
    rows are the same in every run, equal texts (and contexts of answers) never stand on both
    sides, and every class gives the same fraction (but see TaskSpec.dev_by). Raises UserError
    where a side would be empty.
    """
    is_dev = split not in (spec.train_split, "test")
    where = spec.test_file if split == "test" else spec.train_file
    if is_dev and spec.dev_file:
        where = spec.dev_file
    columns = _rows(spec.name, spec.hub, where, spec.columns, spec.label)
    columns[ROW] = list(range(len(columns[spec.label])))
    if spec.dev_file or split == "test":
        return columns
    if spec.kind != "tags":
        check_text(columns, spec.text, where)
    rows = held_out(spec, columns)[is_dev]
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def held_out(spec: TaskSpec, columns: Columns) -> tuple[list[int], list[int]]:
    """The rows of the train file that stay, and those that are cut as dev rows.

    Raises UserError where there would be none of either.
    """
    is_dev = _is_held_out(spec, columns)
    sides = tuple([row for row, dev in enumerate(is_dev) if dev is side] for side in (False, True))
    if not all(sides):
        raise UserError(
            f"{spec.train_file}: {len(is_dev)} rows are too few to part with "
            f"dev_fraction {spec.dev_fraction}; give a dev file"
        )
    return sides


def own_hub_split(task: str, hub: tuple[str, str], split: str) -> HubSplit:
    """A split of the Hub's data set that a user's row names. Raises UserError for none."""
    try:
        return hub_split(hub, split, task, "name a data set and a split that are there, or files")
    except UserError as error:
        raise UserError(f"tasks: {error}") from None


def _rows(
    task: str, hub: tuple[str, str] | None, where: str, columns: Sequence[str], label: str
) -> Columns:
    """These columns of a file, or of the split `where` of a data set of the Hub."""
    if hub is None:
        return read_table(Path(where), columns)
    return own_hub_split(task, hub, where).columns(columns, label)


def _is_held_out(spec: TaskSpec, columns: Columns) -> list[bool]:
    names = spec.text[1:] if spec.kind == "answer" else spec.text
    texts = list(zip(*(map(_hashable, columns[name]) for name in names), strict=True))
    by_class = spec.kind == "classification" and spec.dev_by == "label"
    classes: dict[tuple, str] = {}
    for text, label in zip(texts, columns[spec.label], strict=True):
        classes.setdefault(text, label_name(label) if by_class else "")
    members = defaultdict(list)
    for text, name in classes.items():
        members[name].append(text)
    held_out = set()
    for group in members.values():
        group.sort(key=lambda text: hashlib.sha256(repr(text).encode()).digest())
        held_out.update(group[: round(len(group) * spec.dev_fraction)])
    return [text in held_out for text in texts]


def _hashable(value):
    return tuple(map(str, value)) if isinstance(value, list) else value
