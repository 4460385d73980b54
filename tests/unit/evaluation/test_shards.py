"""An output in pieces: the same whole file however often it was begun again."""

import json

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
