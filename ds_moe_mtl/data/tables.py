"""Files of rows: parquet, JSON lines, comma- and tab-separated text."""

import csv
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.conll import COLUMNS, read_conll
from ds_moe_mtl.data.faults import Faults

Columns = dict[str, list]

ROW = ""
"""The column that says which row of its file each row is, from 0, where that is known."""


def read_table(path: Path, columns: Iterable[str]) -> Columns:
    """These columns of a file, one value a row; the suffix says how it is read.

    .parquet and .jsonl keep their types, .csv and .tsv give text; a .tsv has no quoting. Text is
    UTF-8, the first line of .csv and .tsv names the columns. .conll and .bio have the columns
    tokens and tags (data.conll).
    Raises UserError for a missing file or column, another suffix, and what cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: the file must be one of {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return reader(path, list(columns))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def need_columns(wanted: Iterable[str], present: Iterable[str], origin: str) -> None:
    """Raise UserError for a wanted column that is not present, or there twice."""
    present = list(present)
    for name in wanted:
        if name not in present:
            raise UserError(f"{origin}: {_lacks(name, present)}")
        if present.count(name) > 1:
            raise UserError(f"{origin}: {present.count(name)} columns are named {name!r}")


def _lacks(name: str, present: Iterable[str]) -> str:
    has = ", ".join(repr(name) for name in present) or "none at all"
    return f"no column {name!r}; it has {has}"


def _parquet(path: Path, columns: list[str]) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        need_columns(columns, file.schema_arrow.names, str(path))
        table = file.read(columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason})") from None
    return {name: table.column(name).to_pylist() for name in columns}


def _json_lines(path: Path, columns: list[str]) -> Columns:
    table: Columns = {name: [] for name in columns}
    faults = Faults(str(path))
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: also 5,000 digits
                reason = getattr(error, "msg", error)
                faults.add("JSON", f"line {number} is not JSON ({reason})")
                continue
            if not isinstance(row, dict):
                faults.add("object", f"line {number} is not a JSON object")
                continue
            for name in columns:
                if name not in row:
                    faults.add(("column", name), f"line {number}: {_lacks(name, row)}")
                table[name].append(row.get(name))
    faults.check()
    return table


def _separated(path: Path, columns: list[str], **dialect) -> Columns:
    # Python's limit of 131,072 characters a field is the process's and guards nothing here.
    csv.field_size_limit(sys.maxsize)
    table: Columns = {name: [] for name in columns}
    faults = Faults(str(path))
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True, **dialect)
        try:
            header = next(rows, [])
            need_columns(columns, header, str(path))
            places = [(table[name], header.index(name)) for name in columns]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    faults.add(
                        "fields",
                        f"line {rows.line_num} has {len(row)} fields, "
                        f"the first line has {len(header)}",
                    )
                    continue
                for values, place in places:
                    values.append(row[place])
        except csv.Error as error:
            faults.add("format", f"line {rows.line_num}: {error}")
    faults.check()
    return table


def _commas(path: Path, columns: list[str]) -> Columns:
    return _separated(path, columns)


def _tabs(path: Path, columns: list[str]) -> Columns:
    return _separated(path, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


def _conll(path: Path, columns: list[str]) -> Columns:
    need_columns(columns, COLUMNS, str(path))
    table = read_conll(path)
    return {name: table[name] for name in columns}


READERS: dict[str, Callable[[Path, list[str]], Columns]] = {
    ".csv": _commas,
    ".tsv": _tabs,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".conll": _conll,
    ".bio": _conll,
}
