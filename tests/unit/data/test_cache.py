"""The cache: what its key depends on, damage, many writers, a full or forbidden folder."""

import dataclasses
import multiprocessing
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.data.cache import load_arrays, save_arrays
from ds_moe_mtl.tasks import get_task
from tests.support.paths import minilm_folder, minilm_tokenizer


def encode(cache, name="toy_review", split="train", **more):
    return encode_task(get_task(name), split, minilm_tokenizer(), "embedded", cache, **more)


def same(first, second):
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name))
        for field in dataclasses.fields(first)
        if isinstance(getattr(first, field.name), np.ndarray)
    )


def test_the_second_call_maps_the_cached_file_and_gives_the_same(tmp_path):
    made, read = encode(tmp_path), encode(tmp_path)
    assert (made.cached, read.cached) == (False, True)
    assert same(made, read)
    assert isinstance(read.input_ids.base, np.memmap) or isinstance(read.input_ids, np.memmap)


@pytest.mark.parametrize(
    "other", [{"max_length": 16}, {"limit": 50}, {"split": "dev"}, {"name": "toy_order"}]
)
def test_another_length_subset_split_or_task_is_another_entry(tmp_path, other):
    encode(tmp_path)
    assert not encode(tmp_path, **other).cached
    assert encode(tmp_path, **other).cached and encode(tmp_path).cached


def test_changed_rows_and_another_tokenizer_are_other_entries(tmp_path):
    spec = dataclasses.replace(
        get_task("toy_review"), generated=False, train_file=str(tmp_path / "train.jsonl")
    )
    spec = dataclasses.replace(spec, dev_file=spec.train_file)
    rows = '{"text": "good", "label": "positive"}\n{"text": "bad", "label": "negative"}\n'
    Path(spec.train_file).write_text(rows)
    tokenizer = minilm_tokenizer()

    def cached(tokenizer):
        return encode_task(spec, "train", tokenizer, None, tmp_path / "cache").cached

    assert (cached(tokenizer), cached(tokenizer)) == (False, True)
    Path(spec.train_file).write_text(rows.replace("good", "fine"))
    assert (cached(tokenizer), cached(tokenizer)) == (False, True)
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["blorf"])
    assert (cached(other), cached(other), cached(tokenizer)) == (False, True, True)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "header"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    made = encode(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-20] ^= 1
    damaged = {
        "cut": content[: len(content) // 2],
        "flip": content,
        "empty": b"",
        "header": b"\xff" * 64,
    }[damage]
    path.unlink()
    path.write_bytes(damaged)
    again = encode(tmp_path)
    assert not again.cached and same(made, again)
    assert encode(tmp_path).cached


def _encode_and_report(cache, results):
    split = encode(cache)
    results.put((split.num_sequences, int(np.asarray(split.input_ids, dtype=np.int64).sum())))


def test_processes_that_start_together_all_get_the_whole_split(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_encode_and_report, args=(tmp_path, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(found)) == 1 and len(list(tmp_path.glob("*.safetensors"))) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache: cannot write"):
        encode(tmp_path / "file" / "below")


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match="data.cache: cannot write .*too large"):
            save_arrays(tmp_path / "split", {"labels": np.zeros(4096, "f4")}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_every_type_come_back_as_they_were(tmp_path):
    arrays = {
        "a": np.arange(5, dtype=np.int8),
        "b": np.zeros((0, 2, 2), dtype=np.int32),
        "c": np.ones((3, 2), dtype=np.float32),
        "d": np.arange(3, dtype=np.int64),
    }
    save_arrays(tmp_path / "x", arrays, {"origin": "here"})
    found, notes = load_arrays(tmp_path / "x")
    assert notes["origin"] == "here" and found.keys() == arrays.keys()
    for name, values in arrays.items():
        assert np.array_equal(found[name], values) and found[name].dtype == values.dtype


def test_a_warm_start_imports_none_of_the_slow_packages(tmp_path):
    encode(tmp_path)
    code = f"""
import sys
from transformers import AutoTokenizer
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.tasks import get_task
tokenizer = AutoTokenizer.from_pretrained({str(minilm_folder())!r})
split = encode_task(get_task("toy_review"), "train", tokenizer, "embedded", {str(tmp_path)!r})
print(split.cached, {{"pandas", "pyarrow", "datasets", "sklearn", "scipy"}} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True set()\n"
