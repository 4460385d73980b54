"""A user's own files: what is inferred, how they are parted, what is refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data import encode_task, own_spec, read_split
from tests.support.paths import minilm_tokenizer

LINES = "text,verdict\n" + "".join(
    f'"Reading {i}, of many",{"ham" if i % 3 else "spam"}\n' for i in range(30)
)


def own(path, **fields):
    values = {"name": "mail", "train": str(path), "text": ("text",), "label": "verdict"}
    return own_spec(OwnTask(**{**values, **fields}))


@pytest.fixture
def mail(tmp_path):
    path = tmp_path / "mail.csv"
    path.write_text(LINES)
    return path


def encoded(spec, split, folder):
    return encode_task(spec, split, minilm_tokenizer(), None, folder / "cache")


def test_text_labels_make_a_classification_with_classes_in_order(mail, tmp_path):
    spec = own(mail)
    assert (spec.kind, spec.labels, spec.metric) == ("classification", ("ham", "spam"), "accuracy")
    train, dev = encoded(spec, "train", tmp_path), encoded(spec, "dev", tmp_path)
    assert (train.num_examples, dev.num_examples) == (27, 3)
    assert train.labels.sum() == 9 and dev.labels.sum() == 1


def test_floats_make_a_regression_and_whole_numbers_a_classification(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("text\tverdict\n" + "".join(f"row {i}\t{i / 4}\n" for i in range(20)))
    assert own(path).kind == "regression" and own(path).metric == "spearman"
    path.write_text("text\tverdict\n" + "".join(f"row {i}\t{i % 12}\n" for i in range(40)))
    assert own(path).labels == tuple(str(number) for number in range(12))
    assert own(path, kind="regression").labels == ()


def test_every_file_format_gives_the_same_rows(mail, tmp_path):
    rows = read_split(own(mail, dev=str(mail)), "train", None)
    tsv, jsonl, parquet = (tmp_path / f"mail.{suffix}" for suffix in ("tsv", "jsonl", "parquet"))
    pairs = list(zip(rows["text"], rows["verdict"], strict=True))
    tsv.write_text("text\tverdict\n" + "".join(f"{text}\t{label}\n" for text, label in pairs))
    jsonl.write_text("".join(json.dumps({"verdict": v, "text": t}) + "\n" for t, v in pairs))
    pyarrow.parquet.write_table(pyarrow.table(rows), parquet)
    for path in (tsv, jsonl, parquet):
        assert read_split(own(path, dev=str(path)), "train", None) == rows


def test_the_parts_are_the_same_for_every_seed_and_hold_every_row_once(mail):
    spec = own(mail, dev_fraction=0.2)
    parts = [read_split(spec, split, None) for split in ("train", "validation")]
    assert sorted(parts[0]["text"] + parts[1]["text"]) == sorted(
        f"Reading {i}, of many" for i in range(30)
    )
    assert parts == [read_split(spec, split, None) for split in ("train", "validation")]


def test_equal_texts_never_stand_on_both_sides(tmp_path):
    path = tmp_path / "twice.jsonl"
    rows = [{"text": f"text {i % 10}", "verdict": "no" if i % 2 else "yes"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = own(path, dev_fraction=0.3)
    train, dev = (set(read_split(spec, split, None)["text"]) for split in ("train", "validation"))
    assert train and dev and not train & dev


def test_a_dev_label_that_train_does_not_have_is_told_with_its_row(mail, tmp_path):
    dev = tmp_path / "dev.csv"
    dev.write_text("text,verdict\nfirst,ham\nsecond,eggs\n")
    with pytest.raises(UserError, match=r"dev.csv: row 1 .*label 'eggs' .*ham, spam"):
        encoded(own(mail, dev=str(dev)), "dev", tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"label": "verdikt"}, r"mail.csv: no column 'verdikt'; it has 'text', 'verdict'"),
        ({"text": ("body",)}, r"mail.csv: no column 'body'"),
        ({"label": "text"}, r"'mail' names a column twice: text, text"),
        ({"label": "text", "text": "verdict"}, r"column 'text' has 30 different values in 30 rows"),
        ({"metric": "spearman"}, r"metric 'spearman' is not one of accuracy, matthews"),
        ({"name": "rte"}, r"'rte' is the name of a known task"),
        ({"train": "nowhere.csv"}, r"nowhere.csv: no such file"),
        ({"train": "mail.xlsx"}, r"mail.xlsx: the file must be one of .csv, .tsv, .jsonl"),
    ],
)
def test_what_is_wrong_with_the_row_of_yaml_is_told(mail, fields, message):
    with pytest.raises(UserError, match=message):
        own(mail, **fields)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "text,verdict\n", "the file has no rows"),
        ("a.csv", "", "no column 'text'; it has none at all"),
        ("a.csv", "text ,verdict\na,x\n", "no column 'text'; it has 'text ', 'verdict'"),
        ("a.csv", "text,text,verdict\na,b,x\n", "a.csv: 2 columns are named 'text'"),
        ("a.csv", "text,verdict,verdict\na,x,y\n", "a.csv: 2 columns are named 'verdict'"),
        ("a.csv", "text,verdict\na,x\nb\n", "line 3 has 1 fields, the first line has 2"),
        ("a.csv", "text,verdict\na,x\nb,\n", r"row 1 \(from 0\): no label in column 'verdict'"),
        ("a.csv", 'text,verdict\n"a,x\n', "a.csv: line 2: unexpected end of data"),
        ("a.csv", "text,verdict\na,x\nb,x\n", "column 'verdict' has one class only: 'x'"),
        ("a.jsonl", '{"text": "a", "verdict": "x"}\n{"text"\n', "line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n', "line 1: no column 'verdict'; it has 'text'"),
        (
            "a.jsonl",
            '{"text": "a", "verdict": {"x": "y"}}\n',
            r"row 0 \(from 0\): column 'verdict' holds {'x': 'y'}; allowed: one label an example",
        ),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        own(tmp_path / name)


@pytest.mark.parametrize(
    "text, message",
    [
        ('["a", "b"]', r"a.jsonl: row 3 \(from 0\): column 'text' holds \['a', 'b'\], not text"),
        ("null", r"a.jsonl: row 3 \(from 0\): column 'text' holds None, not text"),
        (r'"a \ud800"', r"a.jsonl: row 3 \(from 0\): column 'text' holds half a character"),
    ],
)
def test_a_text_that_is_none_is_told_with_its_row(tmp_path, text, message):
    path = tmp_path / "a.jsonl"
    texts = [text if i == 3 else f'"row {i}"' for i in range(20)]
    path.write_text("".join(f'{{"text": {t}, "verdict": {i % 2}}}\n' for i, t in enumerate(texts)))
    with pytest.raises(UserError, match=message):
        encoded(own(path), "train", tmp_path)


def test_windows_lines_quotes_and_line_breaks_in_cells_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,verdict\r\n"say ""a"",\r\nthen b",x\r\nb,y\r\n')
    assert read_split(own(path, dev=str(path)), "train", None) == {
        "text": ['say "a",\r\nthen b', "b"],
        "verdict": ["x", "y"],
    }


def test_a_file_in_another_encoding_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,verdict\nä,x\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        own(tmp_path / "a.csv")


def test_too_few_rows_to_part_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("text,verdict\na,x\nb,y\n")
    with pytest.raises(UserError, match="2 rows are too few to part with dev_fraction 0.1"):
        encoded(own(tmp_path / "a.csv"), "dev", tmp_path)


def test_a_file_with_a_byte_order_mark_and_blank_lines_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,verdict\r\na,x\r\n\r\nb,y\r\n")
    assert read_split(own(path, dev=str(path)), "train", None)["text"] == ["a", "b"]


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "1e39", "high"])
def test_a_score_that_is_no_finite_number_is_refused_with_its_row(tmp_path, label):
    path = tmp_path / "scores.csv"
    rows = [f"row {i},{label if i == 7 else i / 4}\n" for i in range(20)]
    path.write_text("text,verdict\n" + "".join(rows))
    with pytest.raises(UserError) as refused:
        spec = own(path, kind="regression")
        encoded(spec, "train", tmp_path)
        encoded(spec, "dev", tmp_path)
    line = str(refused.value)
    assert "scores.csv" in line and "row 7 (from 0)" in line and "\n" not in line
    assert "is not a finite number" in line


def test_a_configuration_of_no_data_set_is_refused():
    with pytest.raises(ValueError, match="'mail' has hub_config = c and no hub; allowed: both"):
        OwnTask(name="mail", train="a.csv", text=("t",), label="l", hub_config="c")


def test_a_data_set_that_the_hub_does_not_give_is_told(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"tasks: task 'mail': cannot load a/b \(c\), train from"):
        own("train", hub="a/b", hub_config="c")
