"""An output in pieces: the same whole file however often it was begun again."""

import datetime
import json
from decimal import Decimal

import pyarrow.parquet
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data.streams import RowStream
from ds_moe_mtl.evaluation.shards import Shards

ROWS = [{"a": f'text {n}, "{n}"\n', "n": n, "p": {"x": n / 10}} for n in range(7)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_pieces_that_were_begun_again_make_the_whole_file(tmp_path, suffix):
    once, twice = tmp_path / f"once{suffix}", tmp_path / f"twice{suffix}"
    with Shards(once, {"of": "this"}, ["a", "n", "p"]) as shards:
        shards.add(ROWS[:3])
        shards.add(ROWS[3:])
        shards.finish()
    with Shards(twice, {"of": "this"}, ["a", "n", "p"]) as shards:
        shards.add(ROWS[:3])
    assert not twice.exists()
    (tmp_path / f"twice{suffix}.part" / f"000002-4{suffix}.tmp").write_bytes(b"half a pie")
    with Shards(twice, {"of": "this"}, ["a", "n", "p"]) as shards:
        assert shards.rows == 3
        shards.add(ROWS[3:])
        shards.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [once.name, twice.name]
    assert once.read_bytes() == twice.read_bytes()
    found = [row.values for chunk in RowStream(once).chunks(9) for row in chunk]
    assert [int(row["n"]) for row in found] == list(range(7))
    if suffix == ".jsonl":
        assert found == ROWS
    elif suffix == ".parquet":
        assert [{**row, "p": json.loads(row["p"])} for row in found] == ROWS
    elif suffix == ".csv":
        assert [row["a"] for row in found] == [row["a"] for row in ROWS]
        assert json.loads(found[1]["p"]) == {"x": 0.1}


def test_a_beginning_without_pieces_hinders_nothing(tmp_path):
    path = tmp_path / "out.jsonl"
    with Shards(path, {"bad_rows": "stop"}, ["a"]):
        pass
    with Shards(path, {"bad_rows": "skip"}, ["a"]) as shards:
        shards.add([{"a": 1}])
    with pytest.raises(UserError, match="differs in bad_rows"), Shards(path, {}, ["a"]):
        pass


def test_pieces_of_something_else_are_not_continued_and_stay(tmp_path):
    path = tmp_path / "out.jsonl"
    with Shards(path, {"input": "one"}, ["a"]) as shards:
        shards.add([{"a": 1}])
    with (
        pytest.raises(UserError, match="beginning of another output .*differs in input"),
        Shards(path, {"input": "two"}, ["a"]),
    ):
        pass
    with Shards(path, {"input": "one"}, ["a"]) as shards:
        assert shards.rows == 1
        with pytest.raises(UserError, match="another process"), Shards(path, {"input": "one"}, []):
            pass
        shards.finish()
    with pytest.raises(UserError, match="exists"):
        Shards(path, {}, [])


def test_a_column_of_nothing_in_one_piece_takes_the_type_of_the_others(tmp_path):
    path = tmp_path / "out.parquet"
    with Shards(path, {}, ["a"]) as shards:
        shards.add([{"a": None}])
        shards.add([{"a": "x"}])
        shards.finish()
    assert pyarrow.parquet.read_table(path)["a"].to_pylist() == [None, "x"]


def test_every_line_break_in_a_cell_is_quoted_and_values_have_no_quotes_of_json(tmp_path):
    path = tmp_path / "out.csv"
    day = datetime.date(2020, 1, 2)
    with Shards(path, {}, ["a\rb", "b"]) as shards:
        shards.add([{"a\rb": "one\rtwo", "b": day}, {"a\rb": "\r\n", "b": Decimal("1.10")}])
        shards.finish()
    stream = RowStream(path)
    assert stream.columns == ("a\rb", "b")
    found = [list(row.values.values()) for chunk in stream.chunks(9) for row in chunk]
    assert found == [["one\rtwo", "2020-01-02"], ["\r\n", "1.10"]]


def test_a_parquet_keeps_the_types_of_its_input_and_may_have_no_rows(tmp_path):
    types = {
        "ns": pyarrow.timestamp("ns"),
        "u": pyarrow.uint64(),
        "m": pyarrow.map_(pyarrow.string(), pyarrow.int64()),
        "f": pyarrow.float32(),
    }
    values = {"ns": [1, None], "u": [2**64 - 1, 1], "m": [[("k", 1)], []], "f": [0.1, 2.0]}
    table = pyarrow.table(values, schema=pyarrow.schema(list(types.items())))
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    stream = RowStream(tmp_path / "in.parquet")
    with Shards(tmp_path / "out.parquet", {}, stream.columns, stream.types) as shards:
        shards.add([row.values for chunk in stream.chunks(9) for row in chunk])
        shards.finish()
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(table)
    with Shards(tmp_path / "none.parquet", {}, ["a"]) as shards:
        shards.finish()
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").to_pydict() == {"a": []}


@pytest.mark.parametrize("values", [[2**70], [2**53 + 1, 0.5], ["x", 1]])
def test_values_without_a_type_are_one_line(tmp_path, values):
    rows = [{"a": value} for value in values]
    for name, pieces in (("one", [rows]), ("other", [[row] for row in rows])):
        path = tmp_path / f"{name}.parquet"
        with pytest.raises(UserError, match="of no one type"), Shards(path, {}, ["a"]) as shards:
            for piece in pieces:
                shards.add(piece)
            shards.finish()
