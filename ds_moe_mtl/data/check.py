"""All that is wrong with the data of all tasks, found before an encoder is sought."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ds_moe_mtl.config import KnownTask, OwnTask, SeveralErrors, UserError
from ds_moe_mtl.data.answer_spans import golds
from ds_moe_mtl.data.label_sets import label_sets
from ds_moe_mtl.data.own import (
    OwnData,
    held_out,
    known_specs,
    own_columns,
    own_origin,
    own_texts,
    read_own,
)
from ds_moe_mtl.data.rows import check_text, label_numbers, right_options
from ds_moe_mtl.data.source import find_split
from ds_moe_mtl.data.tables import ROW, Columns
from ds_moe_mtl.data.tagged import check_words, tag_numbers
from ds_moe_mtl.tasks import TaskSpec


class CheckedTask(NamedTuple):
    """A task whose data can be read. why: of its kind, in words."""

    spec: TaskSpec
    why: str


def checked_tasks(
    entries: Iterable[str | OwnTask | KnownTask], root: str | None
) -> list[CheckedTask]:
    """The tasks of a run in order, groups replaced by their members; their data is in order.

    A task that is in a group and has an entry of its own has what that entry says.

    Of a user's own tasks every row of train, dev and test is looked at; of known ones that their
    files are there (the Hub is not asked). Raises UserError, a line for each task with a fault:
    SeveralErrors where there are several.
    """
    found: dict[str, CheckedTask] = {}
    faults = TaskFaults()
    for entry in entries:
        if isinstance(entry, OwnTask):
            own, lines = _own(entry)
            faults.add(entry.name, lines)
            if own is not None:
                found[entry.name] = CheckedTask(own.spec, own.why)
            continue
        for spec in known_specs(entry):
            known = CheckedTask(spec, "a known task")
            found[spec.name] = found.get(spec.name, known) if isinstance(entry, str) else known
    for name, (spec, _) in found.items():
        if not spec.is_own and root is not None:
            faults.add(name, _missing(spec, root))
    faults.check()
    return list(found.values())


class TaskFaults:
    """What is wrong with the data of a run's tasks, a line each."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, task: str, lines: Sequence[str]) -> None:
        """Take the faults of a task; none is none."""
        if lines:
            self._lines[task] = "; ".join(lines)

    def check(self) -> None:
        """Raise UserError where there is a fault. What tasks have in common is said once."""
        told = dict.fromkeys(self._lines.values())
        if len(told) == 1:
            raise UserError(next(iter(told)))
        if told:
            raise SeveralErrors(
                line if repr(task) in line else f"tasks: {task!r}: {line}"
                for task, line in self._lines.items()
            )


def row_faults(spec: TaskSpec, columns: Columns, origin: str) -> list[str]:
    """What is wrong with the texts and the labels of a task's rows; nothing is tokenised."""
    if spec.kind == "tags":
        return raised(_check_tags, spec, columns, origin)
    texts = [*spec.text, *((spec.joined,) if spec.joined else ())]
    texts += [] if spec.kind in ("options", "text") else spec.choices
    lines = raised(check_text, columns, texts, origin)
    if spec.kind in ("options", "text"):
        lines = _joined(lines, raised(check_text, columns, [spec.label], origin), origin)
    if spec.kind == "text" or (lines and spec.kind in ("answer", "options")):
        return lines  # what is right is read against the texts
    more = {
        "options": lambda: right_options(columns, spec.choices[0], spec.label, origin),
        "answer": lambda: golds(spec, columns, origin),
        "multilabel": lambda: label_sets(spec, columns, origin),
    }.get(spec.kind, lambda: label_numbers(spec, columns[spec.label], origin))
    return _joined(lines, raised(more), origin)


def _own(task: OwnTask) -> tuple[OwnData | None, list[str]]:
    try:
        own = read_own(task)
    except UserError as error:
        return None, _without_row(task, str(error))
    spec, origin = own.spec, own_origin(task, task.train)
    lines = row_faults(spec, own.columns, origin)
    if not spec.dev_file and not lines:
        lines += raised(held_out, spec, own.columns)
    for split, where in (("validation", spec.dev_file), ("test", spec.test_file)):
        if where:
            lines += [line for line in _split_faults(spec, split, task, where) if line not in lines]
    return own, lines


def _split_faults(spec: TaskSpec, split: str, task: OwnTask, where: str) -> list[str]:
    try:
        columns = own_columns(spec, split)
    except UserError as error:
        return [str(error)]
    origin = own_origin(task, where)
    if not columns[ROW]:
        return [f"{origin}: the split is empty; it needs at least one row"]
    return row_faults(spec, columns, origin)


def _without_row(task: OwnTask, first: str) -> list[str]:
    """What can be told of a task of which it is not known what its labels are."""
    lines = [first]
    for where in filter(None, (task.train, task.dev, task.test)):
        try:
            columns = own_texts(task, where)
        except UserError as error:
            found = [str(error)]
        else:
            is_words = any(isinstance(v, list) for values in columns.values() for v in values)
            origin = own_origin(task, where)
            found = [] if is_words else raised(check_text, columns, task.text, origin)
        lines = _joined(lines, [line for line in found if line not in lines], where)
    return lines


def _missing(spec: TaskSpec, root: str) -> list[str]:
    for split in ("train", "dev"):
        for name in spec.splits(split):
            if lines := raised(find_split, spec, name, root):
                return lines
    return []


def _check_tags(spec: TaskSpec, columns: Columns, origin: str) -> None:
    check_words(columns, spec.text[0], spec.label, origin)
    tag_numbers(spec, columns[spec.label], origin)


def raised(check: Callable[..., object], *arguments: object) -> list[str]:
    """The line of the UserError that a check raises, [] where it raises none."""
    try:
        check(*arguments)
    except UserError as error:
        return [str(error)]
    return []


def _joined(lines: list[str], more: list[str], origin: str) -> list[str]:
    """Both, the file's name once where the same file follows itself."""
    if lines and lines[-1].startswith(f"{origin}: "):
        more = [line.removeprefix(f"{origin}: ") for line in more]
    return [*lines, *more]
