"""Rows of a file one by one: the same as the whole table, each with its place and fault."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.streams import Row, RowStream
from ds_moe_mtl.data.tables import read_table

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def _all(path, size=3, skip=0) -> list[Row]:
    return [row for chunk in RowStream(path).chunks(size, skip) for row in chunk]


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9))
def test_a_stream_gives_the_rows_of_the_table(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("stream")
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "b"), *rows])
    lines = [json.dumps({"a": a, "b": b}) for a, b in rows]
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pyarrow.parquet.write_table(
        pyarrow.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]}), folder / "t.parquet"
    )
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        whole = read_table(folder / name, ["a", "b"])
        found = _all(folder / name)
        assert [row.fault for row in found] == [None] * len(rows)
        assert {n: [row.values[n] for row in found] for n in "ab"} == whole
        assert [row.values for row in _all(folder / name, skip=2)] == [
            row.values for row in found[2:]
        ]


def test_a_row_that_is_none_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\n1,2\n3\n"x"y,4\n\xff,5\n"two\nlines",6\n')
    rows = _all(path)
    assert [row.place for row in rows] == ["line 2", "line 3", "line 4", "line 5", "line 7"]
    assert [row.fault is None for row in rows] == [True, False, False, False, True]
    assert "1 fields, the first line has 2" in rows[1].fault
    assert rows[3].fault == "is not UTF-8 text"
    assert rows[4].values == {"a": "two\nlines", "b": "6"}
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": 1}\n[1]\n{"a": \n\n{"a": "\xff"}\n{"a": null}\n{"a": "\\ud800"}')
    faults = [row.fault for row in _all(path)]
    assert faults[0] is None and faults[1] == "is not a JSON object" and "is not JSON" in faults[2]
    assert faults[3:] == ["is not UTF-8 text", None, "holds half a character (a lone surrogate)"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", b"a", "one of .csv"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"a,a\n1,2\n", "2 columns are named 'a'"),
        ("t.jsonl", b"\n", "no rows"),
        ("t.parquet", b"PAR1", "not a readable parquet file"),
    ],
)
def test_what_is_no_file_of_rows_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        RowStream(tmp_path / name)
