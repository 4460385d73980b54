"""Sentences of a CoNLL file: a word a line, its tag in the last column, a blank line between."""

from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.data.faults import Faults
from ds_moe_mtl.tasks.shape_metrics import OUTSIDE

COLUMNS = ("tokens", "tags")
"""What the two columns of such a file are called: the first of its lines, and the last."""

_DOCUMENT = "-DOCSTART-"


def read_conll(path: Path) -> dict[str, list[list[str]]]:
    """Return COLUMNS, a list a sentence. Raises UserError for lines without a tag.

    Columns are parted by a tab where the line has one, else by blanks. Lines that begin a document
    (-DOCSTART-) are left out, and comments: lines that begin with "# " and end in no tag.
    """
    table: dict[str, list[list[str]]] = {name: [] for name in COLUMNS}
    faults = Faults(str(path))
    tokens: list[str] = []
    tags: list[str] = []

    def end_sentence() -> None:
        if tokens:
            table["tokens"].append(tokens.copy())
            table["tags"].append(tags.copy())
        tokens.clear()
        tags.clear()

    with open(path, encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            fields = _fields(line)
            if not fields:
                end_sentence()
            elif fields[0] == _DOCUMENT or _is_comment(fields):
                continue
            elif len(fields) == 1:
                faults.add("tag", f"line {number}: {fields[0]!r:.40} has no tag in a second column")
            else:
                tokens.append(fields[0])
                tags.append(fields[-1])
    end_sentence()
    faults.check()
    return table


def _fields(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    if not line.strip():
        return []
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _is_comment(fields: Sequence[str]) -> bool:
    is_tag = fields[-1] == OUTSIDE or fields[-1][:2] in ("B-", "I-")
    return len(fields) > 1 and fields[0] == "#" and not is_tag
