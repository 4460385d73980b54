"""A user's own files, or a data set of the Hub, as a task.

Kind and labels follow from the label column; dev rows are cut from the training rows where there
are no others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.data.hub import HubSplit, hub_split
from ds_moe_mtl.data.rows import check_text, is_unicode, label_name, not_a_score
from ds_moe_mtl.data.tables import Columns, read_table
from ds_moe_mtl.tasks import TaskSpec, known_tasks, task_groups
from ds_moe_mtl.tasks.metrics import TWO_CLASSES, metrics_of
from ds_moe_mtl.tasks.numbers import is_not_finite, is_whole, number
from ds_moe_mtl.tasks.text2text import gym_tasks

DEFAULT_LENGTH = 128  # tokens, as most of the paper's tasks


def own_spec(task: OwnTask) -> TaskSpec:
    """The task as a row: the kind, the labels and the number of training rows are its data's.

    Labels that are text or whole numbers make a classification, others a regression, unless the
    task says (text: the label is generated) or has a column of options. Raises UserError for a
    name that is taken, files that cannot be read, labels that are missing or no classes, and a
    metric that cannot score them.
    """
    if task.name in known_tasks() or task.name in task_groups() or task.name in gym_tasks():
        raise UserError(f"tasks: {task.name!r} is the name of a known task; choose another")
    columns = [*task.text, task.label, *([task.options] if task.options else [])]
    if len(set(columns)) < len(columns):
        raise UserError(f"tasks: {task.name!r} names a column twice: {', '.join(columns)}")
    hub = None if task.hub is None else (task.hub, task.hub_config or "")
    origin = task.train if hub is None else own_hub_split(task.name, hub, task.train).origin
    rows = _rows(task.name, hub, task.train, columns, task.label)
    values = rows[task.label]
    if not values:
        raise UserError(f"{origin}: the file has no rows; it needs at least one")
    kind = "options" if task.options else task.kind or _kind(values)
    _check_labels(values, task.label, kind, origin)
    labels = _classes(values, task.label, origin) if kind == "classification" else ()
    return TaskSpec(
        name=task.name,
        kind=kind,
        text=tuple(task.text),
        label=task.label,
        labels=labels,
        choices=(task.options,) if task.options else (),
        metric=_metric(task, kind, labels, rows),
        max_length=task.max_length or DEFAULT_LENGTH,
        published_size=len(values),
        hub=hub,
        train_file=task.train,
        dev_file=task.dev or "",
        dev_fraction=task.dev_fraction,
    )


def own_columns(spec: TaskSpec, split: str) -> Columns:
    """The rows of a user's "train" or "validation" split.

    Without a dev file the rows of the train file are parted by a hash of their texts: the dev
    rows are the same in every run, equal texts never stand on both sides, and every class gives
    the same fraction. Raises UserError where a side would be empty.
    """
    is_dev = split != spec.train_split
    where = spec.dev_file if is_dev and spec.dev_file else spec.train_file
    columns = _rows(spec.name, spec.hub, where, spec.columns, spec.label)
    if spec.dev_file:
        return columns
    check_text(columns, spec.text, where)
    held_out = _held_out(spec, columns)
    rows = [row for row, dev in enumerate(held_out) if dev == is_dev]
    if not rows:
        raise UserError(
            f"{spec.train_file}: {len(held_out)} rows are too few to part with "
            f"dev_fraction {spec.dev_fraction}; give a dev file"
        )
    return {name: [values[row] for row in rows] for name, values in columns.items()}


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


def _held_out(spec: TaskSpec, columns: Columns) -> list[bool]:
    texts = list(zip(*(columns[name] for name in spec.text), strict=True))
    classes: dict[tuple, str] = {}
    for text, label in zip(texts, columns[spec.label], strict=True):
        classes.setdefault(text, label_name(label) if spec.labels else "")
    members = defaultdict(list)
    for text, name in classes.items():
        members[name].append(text)
    held_out = set()
    for group in members.values():
        group.sort(key=lambda text: hashlib.sha256(repr(text).encode()).digest())
        held_out.update(group[: round(len(group) * spec.dev_fraction)])
    return [text in held_out for text in texts]


def _kind(values: Sequence) -> str:
    labels = [value for value in values if not (_is_missing(value) or is_not_finite(value))]
    is_score = all(number(value) is not None for value in labels)
    return "regression" if is_score and not all(map(is_whole, labels)) else "classification"


def _check_labels(values: Sequence, label: str, kind: str, origin: str) -> None:
    """Raise UserError for labels that are missing, several, or no scores: each kind counted."""
    faults = Faults(origin)
    for row, value in enumerate(values):
        where = f"row {row} (from 0)"
        if _is_missing(value):
            faults.add("missing", f"{where}: no label in column {label!r}")
        elif isinstance(value, list | dict | bytes):
            faults.add(
                type(value),
                f"{where}: column {label!r} holds {value!r:.60}; "
                "allowed: one label an example, text or a number",
            )
        elif isinstance(value, str) and not is_unicode(value):
            faults.add("surrogate", f"{where}: half a character in column {label!r}: {value!r:.60}")
        elif kind in ("options", "text"):
            continue  # an answer may be any text
        elif is_not_finite(value) or (kind == "regression" and number(value) is None):
            faults.add(("number", is_not_finite(value)), f"{where}: {not_a_score(label, value)}")
    faults.check()


def _is_missing(value) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _metric(task: OwnTask, kind: str, labels: Sequence[str], rows: Columns) -> str:
    """The metric of a task. Raises UserError, with those allowed, for one that cannot score it."""
    allowed = metrics_of(kind)
    if task.metric is None:
        return allowed[0]
    reason = ""
    if task.metric not in allowed:
        reason = f"is not one of {', '.join(allowed)}"
    elif kind == "classification" and task.metric in TWO_CLASSES and len(labels) > 2:
        others = ", ".join(name for name in allowed if name not in TWO_CLASSES)
        reason = f"scores two classes, and there are {len(labels)}; allowed: {others}"
    elif kind == "options" and task.metric != allowed[0]:
        first = rows[task.options][0]
        if any(options != first for options in rows[task.options]):
            reason = f"needs the same options in every row; allowed: {allowed[0]}"
        elif task.metric in TWO_CLASSES and isinstance(first, list) and len(first) > 2:
            others = ", ".join(name for name in allowed if name not in TWO_CLASSES)
            reason = f"scores two options, and there are {len(first)}; allowed: {others}"
    elif kind == "text" and task.metric == "pearson":
        texts = [value for value in rows[task.label] if number(value) is None]
        if texts:
            reason = f"scores numbers, and {len(texts):,} answers are none ({texts[0]!r:.40} first)"
    if reason:
        raise UserError(f"tasks: {task.name!r}: metric {task.metric!r} {reason}")
    return task.metric


def _classes(values: Sequence, label: str, origin: str) -> tuple[str, ...]:
    names = {label_name(value) for value in values}
    if len(names) < 2:
        raise UserError(f"{origin}: column {label!r} has one class only: {names.pop()!r}")
    if len(names) > len(values) / 2 and len(values) > 8:
        words = [row for row, value in enumerate(values) if number(value) is None]
        stray = ""
        if words and len(words) <= len(values) / 2:
            stray = (
                f"; {len(words):,} of them are no numbers: {label_name(values[words[0]])!r:.40}, "
                f"row {words[0]} (from 0), is the first"
            )
        raise UserError(
            f"{origin}: column {label!r} has {len(names)} different values in "
            f"{len(values)} rows; these are no classes (kind: regression takes numbers){stray}"
        )
    if all(map(is_whole, names)):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))
