"""Where rows come from, and what is said when they are not there."""

import pyarrow
import pyarrow.parquet
import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import describe, encode_task, read_split
from ds_moe_mtl.tasks import get_task
from tests.support.paths import minilm_tokenizer

ROWS = {"sentence1": ["a b", "c"], "sentence2": ["d", "e f"], "label": [0, 1]}


def write_split(root, name="rte", split="train", **columns):
    path = root / get_task(name).folder / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({**ROWS, **columns}), path)
    return path


def test_a_local_root_gives_the_columns_of_the_split(tmp_path):
    write_split(tmp_path, idx=[7, 8])
    assert read_split(get_task("rte"), "train", str(tmp_path)) == ROWS


def test_a_root_that_is_no_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="data.root: no folder .*nowhere"):
        read_split(get_task("rte"), "train", str(tmp_path / "nowhere"))


def test_a_root_without_the_set_names_the_file_it_needs(tmp_path):
    with pytest.raises(UserError, match=r"'rte' needs .*glue/rte/train.parquet"):
        read_split(get_task("rte"), "train", str(tmp_path))


def test_a_missing_column_is_told_with_those_there_are(tmp_path):
    path = tmp_path / "glue" / "rte" / "train.parquet"
    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [0]}), path)
    with pytest.raises(UserError, match="no column 'sentence1'; it has 'text', 'label'"):
        read_split(get_task("rte"), "train", str(tmp_path))


def test_an_empty_split_is_told(tmp_path):
    empty = {name: pyarrow.array([], pyarrow.string()) for name in ("sentence1", "sentence2")}
    write_split(tmp_path, **empty, label=pyarrow.array([], pyarrow.int64()))
    with pytest.raises(UserError, match="train.parquet: the split is empty"):
        read_split(get_task("rte"), "train", str(tmp_path))


def test_a_file_that_is_no_parquet_is_told(tmp_path):
    write_split(tmp_path).write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="train.parquet: not a readable parquet file"):
        read_split(get_task("rte"), "train", str(tmp_path))


def test_the_embedded_root_has_embedded_tasks_only():
    with pytest.raises(UserError, match="'rte' is not in the embedded suite .*toy_inference"):
        read_split(get_task("rte"), "train", "embedded")
    assert len(read_split(get_task("toy_cause"), "train", "embedded")["label"]) == 400


def test_an_embedded_task_needs_no_root():
    spec = get_task("toy_sense")
    assert read_split(spec, "train", None) == read_split(spec, "train", "embedded")


def test_a_hub_that_is_out_of_reach_is_told_with_the_way_out(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"'rte': cannot load nyu-mll/glue \(rte\).*data.root"):
        read_split(get_task("rte"), "train", None)


def test_the_published_file_goes_before_its_stand_in(tmp_path):
    spec = get_task("scitail")
    folder = tmp_path / spec.folder
    folder.mkdir(parents=True)

    def write(name, text):
        table = {"premise": [text], "hypothesis": [text], "label": ["neutral"]}
        pyarrow.parquet.write_table(pyarrow.table(table), folder / name)

    write("train_fewshot.parquet", "few")
    assert read_split(spec, "train", str(tmp_path))["premise"] == ["few"]
    write("train.parquet", "all")
    assert read_split(spec, "train", str(tmp_path))["premise"] == ["all"]


def test_a_task_is_described_by_its_sizes_and_class_balance(tmp_path):
    spec = get_task("rte")
    rows = {"sentence1": ["a", "b", "c", "d"], "sentence2": ["e"] * 4}
    write_split(tmp_path, **rows, label=[0, 0, 0, 1])
    write_split(tmp_path, split="validation")

    def described():
        splits = [
            encode_task(spec, split, minilm_tokenizer(), str(tmp_path), tmp_path / "cache")
            for split in ("train", "dev")
        ]
        return describe(spec, *splits)

    assert described() == "rte: 4 train, 2 dev; entailment 75%, not_entailment 25%"
    assert described() == "rte: 4 train, 2 dev (cached); entailment 75%, not_entailment 25%"
