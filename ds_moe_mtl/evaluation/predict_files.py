"""A file of rows labelled by a trained model: in order, in bounded memory, and to be continued."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.streams import Row, RowStream
from ds_moe_mtl.evaluation.model import MultiTaskModel
from ds_moe_mtl.evaluation.probable import WITHOUT
from ds_moe_mtl.evaluation.shards import Shards
from ds_moe_mtl.tasks import TaskSpec

PREFIX = "predicted_"
"""What the name of a task's column in the output begins with."""

FAULT = f"{PREFIX}error"
"""The output's column that says why a row has no answers."""

ROWS_AT_ONCE = 4096
"""Rows in memory together, and of a piece of the output: what an interruption can cost."""


@dataclass(frozen=True)
class Wish:
    """What is asked for. tasks: () for every task whose columns are there.

    columns: (the task's column, the file's column) where they are called differently; the first
    may be TASK.COLUMN. skip_bad: a row that is none is named and kept without answers; else it ends
    the work. probabilities, top_k: as `MultiTaskModel.predict`'s.
    """

    tasks: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    probabilities: bool = False
    top_k: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class Reading:
    """A task, and the column of the file for each of its inputs."""

    spec: TaskSpec
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """How a file ended: rows, those of them without answers, and what was wrong first."""

    rows: int
    bad: int
    first_fault: str | None


def readings(
    model: MultiTaskModel, wish: Wish, present: Sequence[str], origin: str, labelled: bool = False
) -> list[Reading]:
    """Return a Reading for each task that is asked for; labelled: with what is right.

    Raises UserError for a task or column that is not there, and where no task can be read.
    """

    def needed(name: str) -> tuple[str, ...]:
        right = model.task(name).target_columns if labelled else ()
        return (*model.inputs(name), *right)

    known = {f"{name}.{column}" for name in model.specs for column in needed(name)}
    known |= {column for name in model.specs for column in needed(name)}
    for own, _ in wish.columns:
        if own not in known:
            raise UserError(f"--column: no task reads {own!r}; allowed: {', '.join(sorted(known))}")
    found, lacking = [], []
    for name in dict.fromkeys(wish.tasks or model.specs):
        spec = model.task(name)
        renamed = dict(wish.columns)
        columns = {own: renamed.get(f"{name}.{own}", renamed.get(own, own)) for own in needed(name)}
        missing = [theirs for theirs in columns.values() if theirs not in present]
        if missing:
            lacking.append(f"{name} reads {', '.join(map(repr, missing))}")
        else:
            found.append(Reading(spec, columns))
    if lacking and (wish.tasks or not found):
        raise UserError(
            f"{origin}: no such column: {'; '.join(lacking[:4])}; "
            f"it has {', '.join(map(repr, present))}; allowed: --column TASK_COLUMN=FILE_COLUMN"
        )
    return found


def predict_file(
    model: MultiTaskModel,
    source: Path,
    output: Path | None,
    wish: Wish,
    write: Callable[[Mapping], None],
    tell: Callable[[str], None],
) -> Done:
    """Label a file's rows; every column of the file is carried through.

    output: None hands each row to `write`. Else rows are written in pieces, and a call after one
    that was cut short goes on after the last whole piece. tell: gets the progress.
    Raises UserError for a bad row (with its line) unless `wish.skip_bad`, and for what cannot be
    read or written; what is written by then is kept.
    """
    stream = RowStream(source)
    tasks = readings(model, wish, stream.columns, str(source))
    new = [name for one in tasks for name in _names(one.spec, wish)]
    columns = [*stream.columns, *new, *([FAULT] if wish.skip_bad else [])]
    taken = [name for name in columns if columns.count(name) > 1]
    if taken:
        raise UserError(f"{source}: has a column {taken[0]!r} already; allowed: rename it")
    about = None if output is None else _about(model, source, wish)
    shards = None if output is None else Shards(output, about, columns, stream.types)
    with shards or nullcontext():
        skip = shards.rows if shards else 0
        progress = _Progress(stream, skip, tell)
        rows = bad = 0
        first_fault = None
        for chunk in stream.chunks(ROWS_AT_ONCE, skip):
            _check_free(chunk, {*columns} - {*stream.columns}, source)
            answered, faults = _answered(model, tasks, chunk, wish, source)
            if faults and not wish.skip_bad:
                hint = "--bad-rows skip" + (", and another --output" if skip + rows else "")
                raise UserError(f"{source}: {faults[0]}; allowed: {hint}")
            if shards:
                _check_keys(answered, columns, shards.suffix, source)
                shards.add(answered)
            else:
                for row in answered:
                    write(row)
            rows, bad = rows + len(chunk), bad + len(faults)
            first_fault = first_fault or (faults[0] if faults else None)
            progress(rows)
        if shards:
            shards.finish()
    return Done(skip + rows, bad, first_fault)


def _answered(
    model: MultiTaskModel, tasks: Sequence[Reading], chunk: Sequence[Row], wish: Wish, source: Path
) -> tuple[list[dict], list[str]]:
    """Return (the rows with their answers, what is wrong with the bad ones)."""
    faults = {n: row.fault for n, row in enumerate(chunk) if row.fault is not None}
    found: list[dict] = [{} for _ in chunk]
    for task in tasks:
        rows = [n for n in range(len(chunk)) if n not in faults]
        for number, value in _each_answer(model, task, chunk, rows, wish):
            if isinstance(value, UserError):
                faults[number] = _of_one_row(str(value), task.spec.name)
            else:
                found[number] |= value
    rows = []
    for number, row in enumerate(chunk):
        fault = {FAULT: faults.get(number)} if wish.skip_bad else {}
        rows.append({**row.values, **({} if number in faults else found[number]), **fault})
    return rows, [f"{chunk[number].place}: {faults[number]}" for number in sorted(faults)]


def _each_answer(
    model: MultiTaskModel, task: Reading, chunk: Sequence[Row], rows: Sequence[int], wish: Wish
) -> Iterator[tuple[int, dict | UserError]]:
    """Yield (row, its fields or its fault); where some row is bad, halves are tried by themselves.

    So a bad row is found whatever is wrong with it, and the others are answered.
    """
    if not rows:
        return
    examples = [
        {own: chunk[n].values.get(theirs) for own, theirs in task.columns.items()} for n in rows
    ]
    try:
        answers = model.predict(task.spec.name, examples, **_wanted(task.spec, wish))
    except UserError as error:
        if len(rows) == 1:
            yield rows[0], error
            return
        half = len(rows) // 2
        yield from _each_answer(model, task, chunk, rows[:half], wish)
        yield from _each_answer(model, task, chunk, rows[half:], wish)
        return
    for number, answer in zip(rows, answers, strict=True):
        yield number, _fields(task.spec, answer)


def _wanted(spec: TaskSpec, wish: Wish) -> dict:
    """Return `predict`'s keywords for a task: what it has no probabilities of goes without."""
    if spec.kind in WITHOUT or not (wish.probabilities or wish.top_k):
        return {}
    top_k = None if spec.kind == "answer" else wish.top_k
    return {"return_probabilities": True, "top_k": top_k}


def _fields(spec: TaskSpec, answer: object) -> dict:
    """Return an answer as columns of the output; see _names."""
    name, found = f"{PREFIX}{spec.name}", {}
    if isinstance(answer, dict):
        found = {f"{name}_{key}": value for key, value in answer.items() if key != "label"}
        answer = answer["label"]
    elif spec.kind == "multilabel":
        answer = [label for label, _ in answer]
    if spec.kind == "tags":
        answer = [tag for _, tag in answer]
    if spec.kind == "answer":
        found |= {f"{name}_start": answer.start, f"{name}_end": answer.end}
        answer = answer.text
    return {name: answer, **found}


def _names(spec: TaskSpec, wish: Wish) -> list[str]:
    """Return the names of a task's columns in the output."""
    name = f"{PREFIX}{spec.name}"
    names = [name]
    if _wanted(spec, wish):
        if spec.kind not in ("multilabel", "tags"):
            names.append(f"{name}_probability")
        if spec.kind != "answer":
            names.append(f"{name}_probabilities")
    if spec.kind == "answer":
        names += [f"{name}_start", f"{name}_end"]
    return names


def _of_one_row(message: str, task: str) -> str:
    """Return a message about the one example that was given as one about a row."""
    for beginning in (f"{task}: example 0 ", "the examples given: row 0 (from 0): "):
        message = message.removeprefix(beginning)
    return message


def _check_free(chunk: Sequence[Row], new: Set[str], source: Path) -> None:
    """Raise UserError where a row has a key of its own that an answer would take the place of."""
    for row in chunk:
        for key in new & row.values.keys():
            raise UserError(f"{source}: {row.place} has {key!r} already; allowed: rename it")


def _check_keys(rows: Sequence[Mapping], columns: Sequence[str], suffix: str, source: Path) -> None:
    """Raise UserError where a row has a key that a format with a header has no column for."""
    if suffix == ".jsonl":
        return
    known = set(columns)
    for row in rows:
        for key in row:
            if key not in known:
                raise UserError(
                    f"{source}: a row has {key!r}, which the first row has not; "
                    "allowed: --output with a .jsonl"
                )


def _about(model: MultiTaskModel, source: Path, wish: Wish) -> dict:
    stat = source.stat()
    return {
        "input": str(source.absolute()),
        "bytes": stat.st_size,
        "changed": stat.st_mtime_ns,
        "model": model.weights_hash(),
        "tasks": wish.tasks,
        "columns": wish.columns,
        "probabilities": wish.probabilities,
        "top_k": wish.top_k,
        "bad_rows": "skip" if wish.skip_bad else "stop",
        "rows_at_once": ROWS_AT_ONCE,
    }


class _Progress:
    """Says, at most every few seconds, how many rows are done, at what rate, what is left."""

    EVERY = 5.0  # seconds

    def __init__(self, stream: RowStream, skipped: int, tell: Callable[[str], None]) -> None:
        self._stream, self._skipped, self._tell = stream, skipped, tell
        self._began = self._told = time.monotonic()
        self._share = 0.0 if not skipped else None
        if skipped:
            tell(f"{skipped:,} rows are done already; going on after them")

    def __call__(self, rows: int) -> None:
        now, share = time.monotonic(), self._stream.done
        if self._share is None:  # the rows that were skipped cost nothing
            self._share = share * self._skipped / (self._skipped + rows)
        if now - self._told < self.EVERY:
            return
        self._told = now
        seconds, done = now - self._began, share - self._share
        left = seconds * (1 - share) / done if done > 0 else 0
        self._tell(
            f"{self._skipped + rows:,} rows ({share:.0%}), {rows / seconds:,.0f} rows/s, "
            f"{time.strftime('%H:%M:%S', time.gmtime(left))} left"
        )
