"""A user's own files, or a data set of the Hub, as a task.

Kind and labels follow from the label column; dev rows are cut from the training rows where there
are no others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data.hub import HubSplit, hub_split
from ds_moe_mtl.data.rows import check_text, label_name, score
from ds_moe_mtl.data.tables import Columns, read_table
from ds_moe_mtl.tasks import TaskSpec, known_tasks, task_groups
from ds_moe_mtl.tasks.metrics import CLASS_METRICS, REGRESSION_METRICS
from ds_moe_mtl.tasks.text_metrics import TEXT_METRICS

DEFAULT_LENGTH = 128  # tokens, as most of the paper's tasks
_METRICS = {
    "classification": CLASS_METRICS,
    "regression": REGRESSION_METRICS,
    "options": CLASS_METRICS,
    "text": tuple(TEXT_METRICS),
}


def own_spec(task: OwnTask) -> TaskSpec:
    """The task as a row: the kind, the labels and the number of training rows are its data's.

    Labels that are text or whole numbers make a classification, others a regression, unless the
    task says (text: the label is generated) or has a column of options. Raises UserError for a
    name that is taken, files that cannot be read, a label that is missing, and labels that are no
    classes.
    """
    if task.name in known_tasks() or task.name in task_groups():
        raise UserError(f"tasks: {task.name!r} is the name of a known task; choose another")
    columns = [*task.text, task.label, *([task.options] if task.options else [])]
    if len(set(columns)) < len(columns):
        raise UserError(f"tasks: {task.name!r} names a column twice: {', '.join(columns)}")
    hub = None if task.hub is None else (task.hub, task.hub_config or "")
    origin = task.train if hub is None else own_hub_split(task.name, hub, task.train).origin
    values = _rows(task.name, hub, task.train, columns, task.label)[task.label]
    if not values:
        raise UserError(f"{origin}: the file has no rows; it needs at least one")
    for row, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{origin}: row {row} (from 0): no label in column {task.label!r}")
        if isinstance(value, list | dict):
            raise UserError(
                f"{origin}: row {row} (from 0): column {task.label!r} holds {value!r:.60}; "
                "allowed: one label an example, text or a number"
            )
    kind = "options" if task.options else task.kind or _kind(values)
    if kind == "regression":  # here, where rows still have the file's numbers
        for row, value in enumerate(values):
            score(task.label, row, value, origin)
    metrics = _METRICS[kind]
    if task.metric and task.metric not in metrics:
        raise UserError(
            f"tasks: {task.name!r}: metric {task.metric!r} is not one of {', '.join(metrics)}"
        )
    return TaskSpec(
        name=task.name,
        kind=kind,
        text=tuple(task.text),
        label=task.label,
        labels=_classes(values, task.label, origin) if kind == "classification" else (),
        choices=(task.options,) if task.options else (),
        metric=task.metric or metrics[0],
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
    numbers = [_number(value) for value in values]
    is_score = None not in numbers and not all(_is_whole(value) for value in values)
    return "regression" if is_score else "classification"


def _number(value) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _is_whole(value) -> bool:
    if isinstance(value, str):
        return value.strip().lstrip("+-").isdigit()
    return isinstance(value, int)


def _classes(values: Sequence, label: str, origin: str) -> tuple[str, ...]:
    names = {label_name(value) for value in values}
    if len(names) < 2:
        raise UserError(f"{origin}: column {label!r} has one class only: {names.pop()!r}")
    if len(names) > len(values) / 2 and len(values) > 8:
        raise UserError(
            f"{origin}: column {label!r} has {len(names)} different values in "
            f"{len(values)} rows; these are no classes (kind: regression takes numbers)"
        )
    is_numeric = all(_is_whole(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if is_numeric else 0, name)))
