"""What a user's row is, by its keys and its columns: kind, labels, metrics, weights of classes."""

from collections.abc import Sequence
from dataclasses import replace

from ds_moe_mtl.config import KnownTask, OwnTask, UserError
from ds_moe_mtl.data.answer_spans import golds
from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.data.label_sets import label_set_names, label_sets
from ds_moe_mtl.data.rows import (
    check_text,
    is_unicode,
    label_name,
    label_numbers,
    not_a_score,
    shown,
)
from ds_moe_mtl.data.tables import Columns
from ds_moe_mtl.data.tagged import check_words, tag_numbers
from ds_moe_mtl.tasks import TaskSpec, get_task
from ds_moe_mtl.tasks.metrics import TWO_CLASSES, metrics_of, not_one_of
from ds_moe_mtl.tasks.numbers import is_not_finite, is_whole, number
from ds_moe_mtl.tasks.shape_metrics import is_bio

_CLASSED = ("classification", "multilabel", "tags")
_KINDS_OF_KEYS = {
    "labels": _CLASSED,
    "class_weights": _CLASSED,
    "threshold": ("multilabel",),
    "answer_start": ("answer",),
    "longest_answer": ("answer",),
    "separator": ("multilabel",),
    "prefix": ("classification", "regression", "options", "text", "multilabel", "answer"),
}
"""Keys of a row that only some kinds of task have."""


def own_kind(task: OwnTask, rows: Columns) -> tuple[str, str]:
    """The kind that a row names, or that follows from its columns, and why, in words."""
    if task.options:
        return "options", f"the row has options: {task.options}"
    if task.kind is not None:
        return task.kind, "said in the row"
    if not isinstance(task.label, str):
        return "multilabel", "the row has several label columns"
    if task.answer_start:
        return "answer", f"the row has answer_start: {task.answer_start}"
    values = [value for value in rows[task.label] if value is not None]
    column = f"column {task.label!r} holds"
    if values and all(isinstance(value, list) for value in values):
        if any(isinstance(text, list) for text in rows[task.text[0]]):
            return "tags", f"{column} lists, as does column {task.text[0]!r}"
        return "multilabel", f"{column} lists"
    if values and all(isinstance(v, dict) and "answer_start" in v for v in values):
        return "answer", f"{column} answers with their places (answer_start)"
    return _kind(rows[task.label], column)


def check_keys(task: OwnTask, kind: str) -> None:
    """Raise UserError for keys that a task of this kind does not have, and its number of texts."""
    for key, kinds in _KINDS_OF_KEYS.items():
        default = OwnTask.model_fields[key].default
        if getattr(task, key) != default and kind not in kinds:
            raise UserError(
                f"tasks: {task.name!r} is a {kind}, which has no {key}; allowed for: "
                f"{', '.join(kinds)}"
            )
    texts = {"tags": 1, "answer": 2}.get(kind)
    if texts is not None and len(task.text) != texts:
        needed = "one column of words" if kind == "tags" else "two: the question, the context"
        raise UserError(
            f"tasks: {task.name!r}: text has {len(task.text)} columns; kind {kind} needs {needed}"
        )


def own_labels(task: OwnTask, kind: str, rows: Columns, origin: str) -> tuple[str, ...]:
    """The labels in the order of their numbers; () of a kind without.

    They are the row's, or the data's in alphabetical (or numerical) order. Raises UserError for
    labels that are missing, of another form, or not among the row's.
    """
    if kind == "multilabel":
        found = _multilabels(task, rows, origin)
    elif kind == "tags":
        check_words(rows, task.text[0], task.label, origin)
        found = sorted({tag for tags in rows[task.label] for tag in tags})
    elif kind == "answer":
        check_text(rows, task.text, origin)
        golds(_row_of(task, kind), rows, origin)
        return ()
    else:
        _check_labels(rows[task.label], task.label, kind, origin)
        if kind != "classification":
            return ()
        found = () if task.labels else _classes(rows[task.label], task.label, origin)
    if not task.labels:
        if len(found) < 2:
            raise UserError(f"{origin}: {', '.join(found) or 'nothing'} is the only label there is")
        return tuple(found)
    named = tuple(map(label_name, task.labels))
    if len(set(named)) < len(named):
        raise UserError(f"tasks: {task.name!r} names a label twice: {', '.join(named)}")
    spec = _row_of(task, kind, named)
    if kind == "classification":
        label_numbers(spec, rows[task.label], origin)
    elif kind == "tags":
        tag_numbers(spec, rows[task.label], origin)
    else:
        label_sets(spec, rows, origin)
    return named


def own_metrics(task: OwnTask, kind: str, labels: Sequence[str], rows: Columns) -> tuple[str, ...]:
    """The metrics that are told, the one that selects first.

    Raises UserError, with those allowed, for one that cannot score the task.
    """
    if task.metric is None and task.metrics is None:
        return ("accuracy",) if kind == "tags" and not is_bio(labels) else metrics_of(kind)[:1]
    metrics = task.metrics or (task.metric,)
    if len(set(metrics)) < len(metrics):
        raise UserError(f"tasks: {task.name!r} names a metric twice: {', '.join(metrics)}")
    for metric in metrics:
        reason = _no_metric(task, metric, kind, labels, rows)
        if reason:
            raise UserError(f"tasks: {task.name!r}: metric {metric!r} {reason}")
    return metrics


def changed_spec(task: KnownTask) -> TaskSpec:
    """A known task's row with what an entry of the configuration changes.

    Raises UserError for a name that is not known, and for what such a task cannot have.
    """
    spec = get_task(task.name)
    if task.prefix and spec.kind == "span":
        raise UserError(f"tasks: {task.name!r} is a span, which has no prefix")
    if task.class_weights is not None and spec.kind not in ("classification", "span"):
        raise UserError(
            f"tasks: {task.name!r} is a {spec.kind}, which has no class_weights; allowed for: "
            "classification, span"
        )
    metrics = task.metrics or ((task.metric,) if task.metric else (spec.metric,))
    allowed = list(dict.fromkeys((spec.metric, *metrics_of(spec.kind))))
    if spec.kind == "ranking":
        allowed = [spec.metric]
    elif len(spec.labels) > 2:
        allowed = [name for name in allowed if name not in TWO_CLASSES]
    for metric in metrics:
        if metric not in allowed or metrics.count(metric) > 1:
            reason = not_one_of(metric, allowed) if metric not in allowed else "stands twice"
            raise UserError(f"tasks: {task.name!r}: metric {metric!r} {reason}")
    return replace(
        spec,
        metric=metrics[0],
        metrics=metrics if len(metrics) > 1 else (),
        max_length=task.max_length or spec.max_length,
        prefix=task.prefix,
        class_weights=own_weights(task, spec.labels),
        balanced=task.class_weights == "balanced",
        loss_weight=task.loss_weight,
        sampling_weight=task.sampling_weight,
    )


def own_weights(task: OwnTask | KnownTask, labels: Sequence[str]) -> tuple[float, ...]:
    """The weight of each label in the loss; () where they are all 1, or follow from the rows."""
    if task.class_weights is None or task.class_weights == "balanced":
        return ()
    given = {label_name(name): weight for name, weight in task.class_weights.items()}
    for name in given:
        if name not in labels:
            reason = not_one_of(name, labels)
            raise UserError(f"tasks: {task.name!r}: class_weights: {name!r} {reason}")
    return tuple(given.get(name, 1.0) for name in labels)


def _row_of(task: OwnTask, kind: str, labels: tuple[str, ...] = ()) -> TaskSpec:
    """A row that knows enough for its labels to be read."""
    several = not isinstance(task.label, str)
    return TaskSpec(
        task.name,
        kind,
        tuple(task.text),
        label=task.label[0] if several else task.label,
        labels=labels,
        label_columns=task.label if several else (),
        separator=task.separator,
        answer_start=task.answer_start or "",
        train_file=task.train,
    )


def _multilabels(task: OwnTask, rows: Columns, origin: str) -> list[str]:
    if not isinstance(task.label, str):
        label_sets(_row_of(task, "multilabel", task.label), rows, origin)
        return list(task.label)
    values = rows[task.label]
    sets = label_set_names(values, task.label, task.separator, origin)
    names = {name for row in sets for name in row}
    if len(names) > len(values) and len(values) > 8 and not task.labels:
        raise UserError(
            f"{origin}: column {task.label!r} has {len(names)} different labels in {len(values)} "
            f"rows; these are no labels (separator = {task.separator!r})"
        )
    return sorted(names)


def _kind(values: Sequence, column: str) -> tuple[str, str]:
    labels = [value for value in values if not (_is_missing(value) or is_not_finite(value))]
    if not all(number(value) is not None for value in labels):
        return "classification", f"{column} text"
    if all(map(is_whole, labels)):
        return "classification", f"{column} whole numbers"
    return "regression", f"{column} numbers that are not all whole"


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


def _no_metric(task: OwnTask, metric: str, kind: str, labels: Sequence[str], rows: Columns) -> str:
    """Why a metric cannot score the task; "" where it can."""
    allowed = metrics_of(kind)
    reason = ""
    if metric not in allowed:
        reason = not_one_of(metric, allowed)
    elif kind == "tags" and metric == "entity_f1" and not is_bio(labels):
        other = [tag for tag in labels if tag != "O" and tag[:2] not in ("B-", "I-")]
        reason = f"scores tags O, B-X and I-X; {', '.join(other[:3]) or 'O'} is there"
    elif kind == "regression" and metric == "qwk":
        broken = [value for value in rows[task.label] if number(value) % 1]
        if broken:
            reason = f"scores whole numbers, and {len(broken):,} labels are none"
    elif kind == "classification" and metric in TWO_CLASSES and len(labels) > 2:
        others = ", ".join(name for name in allowed if name not in TWO_CLASSES)
        reason = f"scores two classes, and there are {len(labels)}; allowed: {others}"
    elif kind == "options" and metric != allowed[0]:
        first = rows[task.options][0]
        if any(options != first for options in rows[task.options]):
            reason = f"needs the same options in every row; allowed: {allowed[0]}"
        elif metric in TWO_CLASSES and isinstance(first, list) and len(first) > 2:
            others = ", ".join(name for name in allowed if name not in TWO_CLASSES)
            reason = f"scores two options, and there are {len(first)}; allowed: {others}"
    elif kind == "text" and metric == "pearson":
        texts = [value for value in rows[task.label] if number(value) is None]
        if texts:
            reason = f"scores numbers, and {len(texts):,} answers are none ({texts[0]!r:.40} first)"
    return reason


def _classes(values: Sequence, label: str, origin: str) -> tuple[str, ...]:
    names = {label_name(value) for value in values}
    if len(names) < 2:
        raise UserError(f"{origin}: column {label!r} has one class only: {shown(names.pop())}")
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
