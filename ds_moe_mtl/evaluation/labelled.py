"""Labelled rows of a file, for tasks of a trained model: each row known by its line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import SeveralErrors, UserError
from ds_moe_mtl.data.check import raised, row_faults
from ds_moe_mtl.data.conll import COLUMNS, read_conll
from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.data.streams import Row, RowStream
from ds_moe_mtl.evaluation.model import MultiTaskModel
from ds_moe_mtl.evaluation.predict_files import Reading, Wish, readings
from ds_moe_mtl.tasks import TaskSpec

CONLL = (".conll", ".bio")
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Labelled:
    """One task's rows of a file: its columns by the task's names, and what to call each row."""

    spec: TaskSpec
    columns: dict[str, list]
    places: list[str]


def read_labelled(
    model: MultiTaskModel,
    path: Path,
    tasks: Sequence[str],
    columns: Sequence[tuple[str, str]],
) -> list[Labelled]:
    """Return the rows of a file for each of the tasks; () for all whose columns are there.

    columns: (the task's column, the file's) where they differ. A .conll has words and tags only,
    and needs none. Raises UserError for rows that cannot be read or scored, by their lines: a line
    a task, SeveralErrors of several.
    """
    origin = str(path)
    if path.suffix.lower() in CONLL:
        present, rows = COLUMNS, _sentences(path)
        columns = [*_conll_columns(model, tasks), *columns]
    else:
        stream = RowStream(path)
        present = stream.columns
        rows = [row for chunk in stream.chunks(_ROWS_AT_ONCE) for row in chunk]
    wish = Wish(tasks=tuple(tasks), columns=tuple(columns))
    asked = readings(model, wish, present, origin, labelled=True)
    if not rows:
        raise UserError(f"{origin}: the file has no rows; it needs at least one")
    found = [_of_task(each, [row for row in rows if row.fault is None]) for each in asked]
    lines = [
        *_unreadable(rows, origin),
        *(line for each in found for line in _faults(each, origin)),
    ]
    if len(lines) > 1:
        raise SeveralErrors(lines)
    if lines:
        raise UserError(lines[0])
    return found


def _of_task(reading: Reading, rows: Sequence[Row]) -> Labelled:
    columns = {
        own: [row.values.get(theirs) for row in rows] for own, theirs in reading.columns.items()
    }
    return Labelled(reading.spec, columns, [row.place for row in rows])


def _unreadable(rows: Sequence[Row], origin: str) -> list[str]:
    """Return in one line which rows cannot be read at all, or nothing."""
    faults = Faults(origin)
    for row in rows:
        if row.fault is not None:
            faults.add(row.fault, f"{row.place} {row.fault}")
    return raised(faults.check)


def _faults(found: Labelled, origin: str) -> list[str]:
    """Return what is wrong with a task's rows, in one line, rows called by their places."""
    lines = row_faults(found.spec, found.columns, origin) if found.places else []
    if not lines:
        return []
    line = re.sub(
        r"row (\d+) \(from 0\)", lambda number: found.places[int(number[1])], "; ".join(lines)
    )
    return [f"{found.spec.name}: {line}"]


def _sentences(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = read_conll(path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    pairs = zip(*(table[name] for name in COLUMNS), strict=True)
    return [
        Row(f"sentence {number}", dict(zip(COLUMNS, pair, strict=True)))
        for number, pair in enumerate(pairs, 1)
    ]


def _conll_columns(model: MultiTaskModel, tasks: Sequence[str]) -> list[tuple[str, str]]:
    specs = [model.task(name) for name in tasks or model.specs]
    pairs = []
    for spec in specs:
        if spec.kind == "tags":
            words, tags = COLUMNS
            pairs += [(f"{spec.name}.{spec.text[0]}", words), (f"{spec.name}.{spec.label}", tags)]
    return pairs
