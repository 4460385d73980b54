"""Files of rows that need not fit into memory: read row by row, with the place of each.

A row that cannot be read is a row with a fault: whoever reads says whether that ends the work.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.rows import is_unicode
from ds_moe_mtl.data.tables import need_columns

PARQUET_ROWS = 4096
"""Rows of a parquet file that are in memory at once."""


@dataclass(frozen=True)
class Row:
    """One row. place: "line 3", or "row 3" from 0 in a parquet file. fault: why it is none."""

    place: str
    values: dict
    fault: str | None = None


class RowStream:
    """The rows of a .csv, .tsv, .jsonl or .parquet file, in order.

    columns: as its header, its schema, or the first row of a .jsonl names them. types: pyarrow's of
    a .parquet's columns; of other files none. `done` is the share of the file that has been read, 0
    to 1. Raises UserError for what is no such file.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _STREAMS:
            raise UserError(f"{path}: the file must be one of {', '.join(_STREAMS)}")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.path = path
        self.done = 0.0
        self.types = _types(path) if path.suffix.lower() == ".parquet" else {}
        self.columns = tuple(_COLUMNS[path.suffix.lower()](path))
        need_columns(self.columns, self.columns, str(path))  # none twice

    def chunks(self, size: int, skip: int = 0) -> Iterator[list[Row]]:
        """Yield lists of `size` rows (the last one may be shorter), after the first `skip`."""
        rows = _STREAMS[self.path.suffix.lower()](self)
        for _ in islice(rows, skip):
            pass
        while chunk := list(islice(rows, size)):
            yield chunk
        self.done = 1.0


def _commas(stream: RowStream) -> Iterator[Row]:
    return _separated(stream, {})


def _tabs(stream: RowStream) -> Iterator[Row]:
    return _separated(stream, _TABS)


_TABS = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def _separated(stream: RowStream, dialect: dict) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the process's default guards nothing here
    size = max(1, stream.path.stat().st_size)
    # Bytes that are no UTF-8 become half characters, so that only their own row has a fault.
    with open(stream.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        read = 0

        def lines() -> Iterator[str]:
            nonlocal read
            for line in file:
                read += len(line)
                yield line

        rows = csv.reader(lines(), strict=True, **dialect)
        next(rows)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Row(f"line {rows.line_num}", {}, str(error))
                continue
            if row is None:
                return
            if not row:
                continue
            stream.done = min(1.0, read / size)  # of characters: a lower bound of the bytes
            place = f"line {rows.line_num}"
            values = dict(zip(stream.columns, row, strict=False))
            if len(row) != len(stream.columns):
                fault = f"has {len(row)} fields, the first line has {len(stream.columns)}"
                yield Row(place, values, fault)
            elif not all(map(is_unicode, row)):
                yield Row(place, {}, "is not UTF-8 text")
            else:
                yield Row(place, values)


def _json_lines(stream: RowStream) -> Iterator[Row]:
    size, read = max(1, stream.path.stat().st_size), 0
    with open(stream.path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            read += len(line)
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                stream.done = read / size
                yield _json_row(f"line {number}", line)


def _json_row(place: str, line: bytes) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Row(place, {}, "is not UTF-8 text")
    except (ValueError, RecursionError) as error:  # ValueError: also of 5,000 digits
        return Row(place, {}, f"is not JSON ({getattr(error, 'msg', error)})")
    if not isinstance(values, dict):
        return Row(place, {}, "is not a JSON object")
    if b"\\u" in line and not is_unicode(json.dumps(values, ensure_ascii=False)):
        return Row(place, {}, "holds half a character (a lone surrogate)")
    return Row(place, values)


def _parquet(stream: RowStream) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(stream.path) as file:
            number, total = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(PARQUET_ROWS):
                for values in batch.to_pylist():
                    stream.done = number / total
                    yield Row(f"row {number} (from 0)", values)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{stream.path}: {str(error).splitlines()[0]}") from None


def _header(path: Path, dialect: dict) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            names = next(csv.reader(file, strict=True, **dialect), [])
    except csv.Error as error:
        raise UserError(f"{path}: line 1 does not name the columns ({error})") from None
    if not all(map(is_unicode, names)):
        raise UserError(f"{path}: line 1 is not UTF-8 text")
    if not names:
        raise UserError(f"{path}: the file is empty; its first line names the columns")
    return names


def _first_keys(path: Path) -> list[str]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            row = _json_row(f"line {number}", line)
            if line.strip() and row.fault is None:
                return list(row.values)
    raise UserError(f"{path}: the file has no rows")


def _types(path: Path) -> dict:
    return {field.name: field.type for field in _schema(path)}


def _schema(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason})") from None


_STREAMS: dict[str, Callable[[RowStream], Iterator[Row]]] = {
    ".csv": _commas,
    ".tsv": _tabs,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
_COLUMNS: dict[str, Callable[[Path], list[str]]] = {
    ".csv": lambda path: _header(path, {}),
    ".tsv": lambda path: _header(path, _TABS),
    ".jsonl": _first_keys,
    ".parquet": lambda path: _schema(path).names,
}
