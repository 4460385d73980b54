"""A file of rows that is written in pieces, so that whoever writes it can stop and go on.

<output>.part/about.json         what the pieces are made of
<output>.part/000001-4096.jsonl  piece 1, 4,096 rows; whole or not there
<output>                         all pieces, once the last one is written
"""

import base64
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import read_json, whole_file

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")


class Shards:
    """The pieces of one output file.

    about: plain JSON values that say what the rows are made of; pieces of something else are not
    continued. columns: the output's columns in order, for the formats that have a header. types:
    pyarrow's, of those whose type is known, for a .parquet; of the others they follow from values.
    Use as a context; leaving it without `finish` keeps the pieces.
    Raises UserError where the output is there, or pieces of something else are, or another process
    writes them.
    """

    def __init__(
        self,
        output: Path,
        about: Mapping,
        columns: Sequence[str],
        types: Mapping[str, Any] | None = None,
    ) -> None:
        self.output, self.columns, self.types = output, list(columns), types or {}
        self.suffix = output.suffix.lower()
        if self.suffix not in FORMATS:
            raise UserError(f"--output: {output}: the file must be one of {', '.join(FORMATS)}")
        if output.exists():
            raise UserError(f"--output: {output} exists; allowed: a new file")
        if not output.absolute().parent.is_dir():
            raise UserError(f"--output: {output.absolute().parent}: no such folder")
        self.folder = output.with_name(f"{output.name}.part")
        self.about = json.loads(json.dumps(about))

    def __enter__(self) -> "Shards":
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"{self.output}: another process writes it") from None
        about = self.folder / "about.json"
        # What was begun without a piece holds nothing that could be mixed up.
        before = read_json(about) if about.is_file() and self._pieces() else self.about
        if before != self.about:
            self._lock.close()
            differs = [k for k in {**before, **self.about} if before.get(k) != self.about.get(k)]
            raise UserError(
                f"{self.folder} holds the beginning of another output (it differs in "
                f"{', '.join(differs)}); allowed: another --output, or remove that folder"
            )
        _write(about, json.dumps(self.about).encode())
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    @property
    def rows(self) -> int:
        """Rows of the pieces that are written."""
        return sum(int(path.stem.partition("-")[2]) for path in self._pieces())

    def add(self, rows: Sequence[Mapping]) -> None:
        """Write the next piece."""
        number = len(self._pieces()) + 1
        path = self.folder / f"{number:06d}-{len(rows)}{self.suffix}"
        _write(path, _ENCODERS[self.suffix](self, rows))

    def finish(self) -> None:
        """Put the pieces together as the output, and remove them."""
        whole = self.folder / f"whole{self.suffix}"
        _JOINERS[self.suffix](self, whole)
        os.replace(whole, self.output.resolve())  # a link stays one
        for piece in reversed(self._pieces()):  # what is left by a kill here is a beginning
            piece.unlink()
        shutil.rmtree(self.folder)

    def _pieces(self) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*-*{self.suffix}"))


def json_line(row: Mapping) -> str:
    """Return a row as one line of JSON; what JSON has no form for becomes text (bytes: base64)."""
    return json.dumps(row, ensure_ascii=False, default=_as_text)


def _as_text(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as part:
        part.write_bytes(content)


def _lines(shards: Shards, rows: Sequence[Mapping]) -> bytes:
    return "".join(f"{json_line(row)}\n" for row in rows).encode()


def _commas(shards: Shards, rows: Sequence[Mapping]) -> bytes:
    lines = [[_cell(row.get(name)) for name in shards.columns] for row in rows]
    return "".join(map(_comma_line, lines)).encode()


def _comma_line(cells: Sequence[str]) -> str:
    """Return a line of a .csv; before Python 3.13 csv.writer leaves a lone \\r without quotes."""
    quoted = (
        '"{}"'.format(cell.replace('"', '""')) if any(mark in cell for mark in ',"\r\n') else cell
        for cell in cells
    )
    return ",".join(quoted) + "\n"


def _tabs(shards: Shards, rows: Sequence[Mapping]) -> bytes:
    lines = [[_cell(row.get(name)) for name in shards.columns] for row in rows]
    return "".join("\t".join(map(_on_one_line, line)) + "\n" for line in lines).encode()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | bool):
        return str(value)
    return json_line(value) if isinstance(value, dict | list | tuple) else _as_text(value)


def _parquet_value(value: object) -> object:
    """Return a value for a column of one type: objects, whose keys may differ, as JSON."""
    return json_line(value) if isinstance(value, dict) else value


def _on_one_line(text: str) -> str:
    """Return a value as a .tsv, which has no quoting, can hold it: on one line, without tabs."""
    return " ".join(text.replace("\t", " ").splitlines())


def _table(shards: Shards, rows: Sequence[Mapping]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.table({name: _array(shards, name, rows) for name in shards.columns})
    except (pyarrow.ArrowException, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--output: {shards.output}: a column has values of no one type ({reason}); "
            "allowed: a .jsonl"
        ) from None
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _array(shards: Shards, name: str, rows: Sequence[Mapping]):
    """Return a column as pyarrow has it. Raises ArrowException or OverflowError where it cannot."""
    import pyarrow

    values = [row.get(name) for row in rows]
    if name in shards.types:
        return pyarrow.array(values, type=shards.types[name])
    return pyarrow.array(map(_parquet_value, values))


def _join_text(shards: Shards, whole: Path) -> None:
    with whole.open("wb") as file:
        if shards.suffix == ".csv":
            file.write(_comma_line(shards.columns).encode())
        elif shards.suffix == ".tsv":
            file.write(("\t".join(map(_on_one_line, shards.columns)) + "\n").encode())
        for piece in shards._pieces():
            with piece.open("rb") as part:
                shutil.copyfileobj(part, file)
        file.flush()
        os.fsync(file.fileno())


def _join_tables(shards: Shards, whole: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    if not shards._pieces():
        shards.add([])
    pieces = shards._pieces()
    try:
        schema = pyarrow.unify_schemas(
            [pyarrow.parquet.read_schema(piece) for piece in pieces], promote_options="permissive"
        )
        with pyarrow.parquet.ParquetWriter(whole, schema) as writer:
            for piece in pieces:
                writer.write_table(pyarrow.parquet.read_table(piece).cast(schema))
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--output: {shards.output}: a column has values of no one type ({reason}); "
            f"allowed: a .jsonl; the rows so far are in {shards.folder}"
        ) from None


_ENCODERS: dict[str, Callable[[Shards, Sequence[Mapping]], bytes]] = {
    ".jsonl": _lines,
    ".csv": _commas,
    ".tsv": _tabs,
    ".parquet": _table,
}
_JOINERS: dict[str, Callable[[Shards, Path], None]] = {
    ".jsonl": _join_text,
    ".csv": _join_text,
    ".tsv": _join_text,
    ".parquet": _join_tables,
}
