"""How a user's labels are read, what is told of them, and what is refused with its counts."""

import json

import pytest

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data import describe, encode_task, own_spec, read_split
from tests.support.paths import minilm_tokenizer


def write(path, labels, texts=None):
    texts = texts or [f"text number {i}" for i in range(len(labels))]
    rows = zip(texts, labels, strict=True)
    path.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in rows))
    return path


def own(path, **more):
    return own_spec(OwnTask(name="t", train=str(path), text=("text",), label="label", **more))


def line_of(path, folder, length=None, **more):
    spec = own(path, **more)
    splits = [
        encode_task(spec, split, minilm_tokenizer(), None, folder / "cache", length)
        for split in ("train", "dev")
    ]
    return describe(spec, *splits)


@pytest.mark.parametrize("labels", [("1_0", "2_0"), ("①", "②"), ("٣", "٤"), ("1e400", "2e400")])
def test_words_that_python_takes_for_numbers_are_classes(tmp_path, labels):
    spec = own(write(tmp_path / "a.jsonl", list(labels) * 20))
    assert (spec.kind, set(spec.labels)) == ("classification", set(labels))


def test_whole_numbers_are_classes_in_the_order_of_numbers_however_long(tmp_path):
    labels = ["10", "9", "-2", "9" * 400]
    assert own(write(tmp_path / "a.jsonl", labels * 5)).labels == ("-2", "9", "10", "9" * 400)


@pytest.mark.parametrize("bad", ["nan", "NaN", "inf", "-Infinity", float("nan"), float("inf")])
@pytest.mark.parametrize("others", [["x", "y"], ["1", "2"], [0.5, 1.5]])
def test_nan_and_infinity_are_no_labels(tmp_path, bad, others):
    path = write(tmp_path / "a.jsonl", others * 10 + [bad] * 3)
    said = r"row 20 \(from 0\): .* (is not a finite|how tables write a) number.* \(3 such"
    with pytest.raises(UserError, match=said):
        own(path)


def test_every_kind_of_bad_label_is_told_once_with_its_count(tmp_path):
    labels = ["a", "b"] * 5 + [None, "", ["a"], None, float("nan"), "\ud800"]
    with pytest.raises(UserError) as refused:
        own(write(tmp_path / "a.jsonl", labels))
    line = str(refused.value)
    assert "row 10 (from 0): no label in column 'label' (3 such rows)" in line
    assert "row 12 (from 0): column 'label' holds ['a']" in line
    assert "row 14 (from 0): label nan" in line and "row 15 (from 0): half a character" in line


def test_every_kind_of_bad_row_of_a_file_is_told_once_with_its_count(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\nb\nc\nd,y,z\ne,y\n")
    with pytest.raises(UserError, match=r"line 3 has 1 fields, .* has 2 \(3 such rows\)"):
        own(tmp_path / "a.csv")
    lines = [
        '{"text": "a", "label": "x"}',
        "{",
        "[1]",
        '{"text": "a"}',
        "{",
        "1" * 5000,
        "[" * 9999,
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as refused:
        own(tmp_path / "a.jsonl")
    line = str(refused.value)
    assert "line 2 is not JSON" in line and "(4 such rows)" in line
    assert "line 3 is not a JSON object; line 4: no column 'label'; it has 'text'" in line


def test_every_unknown_dev_label_is_told_with_its_count(tmp_path):
    spec = own(
        write(tmp_path / "a.jsonl", ["a", "b"] * 5),
        dev=str(write(tmp_path / "dev.jsonl", ["a", "c", "c", "d"])),
    )
    with pytest.raises(UserError, match=r"row 1 .*'c' .*\(2 such rows\); row 3 .*'d' "):
        encode_task(spec, "dev", minilm_tokenizer(), None, tmp_path / "cache")


def test_a_field_of_any_length_is_read(tmp_path):
    long = "word " * 60_000
    (tmp_path / "a.csv").write_text(f"text,label\n{long},x\nb,y\n")
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{long}\tx\nb\ty\n")
    for name in ("a.csv", "a.tsv"):
        spec = own(tmp_path / name, dev=str(tmp_path / name))
        assert read_split(spec, "train", None)["text"] == [long, "b"]


def test_columns_of_parquet_are_found_by_their_whole_names(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = {"a.b": ["one", "two"], "a": ["three", "four"], "label": ["x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    spec = own_spec(OwnTask(name="t", train=path, dev=path, text=("a.b", "a"), label="label"))
    assert read_split(spec, "train", None) == table


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (["1.0", "2.0"] * 10, {}, "18 of 18 scores are whole numbers (kind: classification reads"),
        (["1.0", "2.0"] * 10, {"kind": "classification"}, "18 of 18 labels are decimal numbers"),
        ([1.0, 2.0] * 10, {"kind": "classification"}, "read as class names ('1.0', '2.0')"),
        (["1", "2"] * 10 + ["high"] * 4, {}, "4 of 22 labels are no numbers ('high')"),
        (["1", "2", "01"] * 10, {}, "classes of one number: 01 (9), 1 (9)"),
        (["Yes", "no", "yes"] * 10, {}, "classes of one word: Yes (9), yes (9)"),
        (["a\nb", "c"] * 10, {}, "'a\\nb' 50%, c 50%"),
        (["ham", "spam"] * 10, {"metric": "f1"}, "f1 is that of spam"),
    ],
)
def test_labels_that_may_mean_something_else_are_told_with_counts(tmp_path, labels, more, words):
    line = line_of(write(tmp_path / "a.jsonl", labels), tmp_path, **more)
    assert words in line and "\n" not in line


def test_a_stray_word_among_scores_is_told_where_it_stands(tmp_path):
    labels = [i / 4 + 0.1 for i in range(30)]
    labels[7] = "high"
    with pytest.raises(UserError, match=r"1 of them are no numbers: 'high', row 7 \(from 0\)"):
        own(write(tmp_path / "a.jsonl", labels))


@pytest.mark.parametrize("labels", [list(range(30)), [f"{i}_" for i in range(30)]])
def test_labels_that_all_differ_are_no_classes(tmp_path, labels):
    with pytest.raises(
        UserError, match=r"these are no classes \(kind: regression takes numbers\)$"
    ):
        own(write(tmp_path / "a.jsonl", labels))


def test_plain_labels_are_told_plainly(tmp_path):
    line = line_of(write(tmp_path / "a.jsonl", ["x", "y"] * 10), tmp_path)
    assert line == "t: 18 train, 2 dev; x 50%, y 50%"


def test_dev_examples_that_are_in_train_are_counted(tmp_path):
    train = write(tmp_path / "a.jsonl", ["x", "y"] * 10)
    assert "20 of 20 dev examples are in train too: dev is the train file" in line_of(
        train, tmp_path, dev=str(train)
    )
    copy = write(tmp_path / "copy.jsonl", ["y", "x"] * 10)
    assert line_of(train, tmp_path, dev=str(copy)).endswith(
        "20 of 20 dev examples are in train too"
    )
    texts = ["text number 3", "another", "Text  number 4", "text number 400"]
    some = write(tmp_path / "some.jsonl", ["x", "y"] * 2, texts)
    assert "2 of 4 dev examples are in train too" in line_of(train, tmp_path, dev=str(some))
    other = write(tmp_path / "other.jsonl", ["x", "y"], ["one", "two"])
    assert "in train" not in line_of(train, tmp_path, dev=str(other))


def test_the_share_of_texts_that_are_cut_is_told(tmp_path):
    texts = [f"{i} " + "word " * (40 if i % 4 == 0 else 2) for i in range(20)]
    train = write(tmp_path / "a.jsonl", ["x", "y"] * 10, texts)
    dev = write(tmp_path / "dev.jsonl", ["x", "y"], ["short", "other"])
    line = line_of(train, tmp_path, 16, dev=str(dev))
    assert "cut at max_length: 25% of train, 0% of dev" in line
    assert line_of(train, tmp_path, 16, dev=str(dev)).endswith("25% of train, 0% of dev")  # cached
    assert "cut" not in line_of(train, tmp_path, 64, dev=str(dev))


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (
            ["a", "b", "c"],
            {"metric": "f1"},
            "'f1' scores two classes, and there are 3; allow",
        ),
        (["a", "b", "1"], {"metric": "pearson", "kind": "text"}, "2 answers are none ('a' first)"),
        (["a", "b"], {"metric": "f2"}, "'f2' is not one of accuracy, matthews, f1, macro_f1"),
    ],
)
def test_a_metric_that_cannot_score_the_task_is_refused_with_its_row(tmp_path, labels, more, words):
    with pytest.raises(UserError) as refused:
        own(write(tmp_path / "a.jsonl", labels * 6), **more)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("options", "metric", "words"),
    [
        ([["a", "b"], ["a", "b"]], "f1", None),
        ([["a", "b"], ["b", "a"]], "f1", "needs the same options in every row"),
        ([["a", "b", "c"]] * 2, "f1", "scores two options, and there are 3"),
        ([["a", "b", "c"]] * 2, "macro_f1", None),
        ([["a", "b"], ["b", "a"]], "accuracy", None),
    ],
)
def test_options_that_differ_from_row_to_row_have_no_classes_to_score(
    tmp_path, options, metric, words
):
    rows = [{"text": "t", "label": "a", "choices": each} for each in options]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if words is None:
        assert own(tmp_path / "a.jsonl", options="choices", metric=metric).metric == metric
        return
    with pytest.raises(UserError, match=words):
        own(tmp_path / "a.jsonl", options="choices", metric=metric)


def test_a_name_of_the_gym_or_longer_than_a_files_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", ["x", "y"] * 10)
    row = {"train": str(path), "text": ("text",), "label": "label"}
    with pytest.raises(UserError, match="'gym-emo' is the name of a known task"):
        own_spec(OwnTask(name="gym-emo", **row))
    with pytest.raises(ValueError, match="has 101 characters; allowed: at most 100"):
        OwnTask(name="x" * 101, **row)
