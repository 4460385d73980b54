"""Several labels, tags and answers in a user's files: what is read, what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ds_moe_mtl.config import OwnTask, UserError
from ds_moe_mtl.data import describe, encode_task, own_spec, read_split
from ds_moe_mtl.data.answer_spans import FIRST, LAST, stored_texts
from ds_moe_mtl.data.conll import read_conll
from ds_moe_mtl.models.task_fit import balanced
from tests.support.paths import minilm_tokenizer

LABELS = [
    {"text": f"row {i}", "topics": ["food"] * (i % 2) + ["price"] * (i % 3 > 0)} for i in range(20)
]
TAGS = [
    {"tokens": ["Ada", "Lovelace", f"wrote{i}", ""], "tags": ["B-PER", "I-PER", "O", "O"]}
    for i in range(20)
]
ANSWERS = [
    {"q": f"Who wrote {i}?", "c": f"In {i} the Ada Lovelace society met.", "a": "Ada Lovelace"}
    for i in range(20)
]


def written(folder, rows, suffix="jsonl"):
    path = folder / f"rows.{suffix}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(path, **row):
    return own_spec(OwnTask(name="mine", train=path, **row))


def labels(folder, **row):
    return own(written(folder, LABELS), **{"text": "text", "label": "topics", **row})


def tags(folder, rows=TAGS, **row):
    return own(written(folder, rows), **{"text": "tokens", "label": "tags", **row})


def answers(folder, rows=ANSWERS, **row):
    return own(written(folder, rows), **{"text": ["q", "c"], "label": "a", "kind": "answer", **row})


def encoded(spec, split="train", length=None):
    return encode_task(spec, split, minilm_tokenizer(), None, spec.train_file + ".cache", length)


def test_a_list_column_makes_several_labels(tmp_path):
    spec = labels(tmp_path)
    assert (spec.kind, spec.labels, spec.metric) == ("multilabel", ("food", "price"), "macro_f1")
    train, dev = encoded(spec), encoded(spec, "dev")
    assert (train.num_examples, dev.num_examples) == (18, 2)
    sets = np.concatenate([train.label_sets, dev.label_sets])
    assert sets.sum(axis=0).tolist() == [10, 13]
    line = describe(spec, train, dev)
    assert "food" in line and "without a label" in line


@pytest.mark.parametrize("value", ['["food", "price"]', "food;price", " price ;food; food"])
def test_labels_in_one_text_are_a_json_list_or_parted_by_the_separator(tmp_path, value):
    path = tmp_path / "a.tsv"
    lines = [f"row {i}\t{value if i % 2 else ''}\n" for i in range(20)]
    path.write_text("text\ttopics\n" + "".join(lines))
    row = {"text": "text", "label": "topics", "kind": "multilabel", "separator": ";"}
    spec = own(str(path), **row)
    assert spec.labels == ("food", "price")
    both = [encoded(spec, split).label_sets for split in ("train", "dev")]
    assert np.concatenate(both).sum(axis=0).tolist() == [10, 10]


def test_boolean_columns_make_several_labels_or_a_task_each_with_the_same_dev_rows(tmp_path):
    rows = [{"text": f"row {i}", "good": i % 2 == 0, "cheap": str(i % 3 // 2)} for i in range(40)]
    path = written(tmp_path, rows)
    row = {"name": "mine", "train": path, "text": "text", "label": ["good", "cheap"]}
    spec = own_spec(OwnTask(**row))
    assert (spec.kind, spec.labels, spec.target_columns) == ("multilabel", *[("good", "cheap")] * 2)
    both = [encoded(spec, split).label_sets for split in ("train", "dev")]
    assert np.concatenate(both).sum(axis=0).tolist() == [20, 13]
    parts = [own_spec(task) for task in OwnTask(**row, separate=True).rows]
    assert [part.name for part in parts] == ["mine_good", "mine_cheap"]
    assert [part.labels for part in parts] == [("False", "True"), ("0", "1")]
    dev = [read_split(part, "validation", None)["text"] for part in parts]
    assert dev[0] == dev[1] and len(dev[0]) == 4


def test_words_are_read_at_their_first_piece_and_what_is_cut_is_counted(tmp_path):
    spec = tags(tmp_path)
    assert (spec.kind, spec.metric, spec.labels) == ("tags", "entity_f1", ("B-PER", "I-PER", "O"))
    train = encoded(spec)
    pieces = minilm_tokenizer().convert_ids_to_tokens(train.input_ids[: train.offsets[1]].tolist())
    first = [pieces[place] for place in train.unit_places[: train.unit_offsets[1]]]
    assert first == ["ada", "love", "wrote"] and train.unit_words[:3].tolist() == [0, 1, 2]
    assert train.unit_labels[:3].tolist() == [0, 1, 2]
    assert train.unseen_words == 18  # the empty ones
    shorter = encoded(spec, length=5)
    assert shorter.unseen_words == 36 and "words cut off or empty: 36 of train" in describe(
        spec, shorter, shorter
    )


def test_malformed_tags_are_counted_and_kept(tmp_path):
    rows = [{**row, "tags": ["O", "I-PER", "B-PER", "O"]} for row in TAGS]
    spec = tags(tmp_path, rows)
    train = encoded(spec)
    assert train.word_tags[:4].tolist() == [2, 1, 0, 2]
    assert "tags I-X that follow no X: 18 of train" in describe(spec, train, encoded(spec, "dev"))


def test_other_schemes_are_scored_by_words_and_entity_f1_is_refused(tmp_path):
    rows = [{**row, "tags": ["S-PER", "I-PER", "O", "O"]} for row in TAGS]
    assert tags(tmp_path, rows).metric == "accuracy"
    with pytest.raises(UserError, match="scores tags O, B-X and I-X; S-PER is there"):
        tags(tmp_path, rows, metric="entity_f1")


def test_a_conll_file_is_sentences_of_its_first_and_last_column(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\n# id = 7\nAda NNP B-NP B-PER\nLovelace NNP I-NP I-PER\n# . O O\n\n"
        "\r\nwrote VBD O O\n"
    )
    table = read_conll(path)
    assert table["tokens"] == [["Ada", "Lovelace", "#"], ["wrote"]]
    assert table["tags"] == [["B-PER", "I-PER", "O"], ["O"]]
    path.write_text("Ada\tB-PER\nLovelace\n")
    with pytest.raises(UserError, match="line 2: 'Lovelace' has no tag"):
        read_conll(path)
    path.write_text("\n\n".join(f"Ada B-PER\nw{i} O" for i in range(20)))
    spec = own(str(path), text="tokens", label="tags")
    assert (spec.kind, spec.published_size) == ("tags", 20)


def test_an_answers_tokens_are_found_and_its_text_comes_back(tmp_path):
    spec = answers(tmp_path)
    train = encoded(spec)
    first, last = (np.flatnonzero(train.unit_labels & bit) for bit in (FIRST, LAST))
    assert len(first) == len(last) == 18 and train.lost_answers == 0
    context = stored_texts(train.contexts, train.context_offsets)[0]
    start, end = train.unit_chars[first[0], 0], train.unit_chars[last[0], 1]
    assert context[start:end] == "Ada Lovelace"
    cut = encoded(spec, length=12)
    assert cut.lost_answers == 18 and "answers cut off at max_length: 18 of train" in describe(
        spec, cut, cut
    )


@pytest.mark.parametrize("end", ["", "\u0301", "\u200b"])
def test_an_answer_may_end_in_characters_that_no_token_is_of(tmp_path, end):
    name = f"Ada Lovelace{end}"
    rows = [{**row, "c": row["c"].replace("Ada Lovelace", name), "a": name} for row in ANSWERS]
    spec = answers(tmp_path, rows)
    assert encoded(spec).lost_answers == 0
    assert encoded(spec, length=12).lost_answers == 18


@pytest.mark.parametrize("label", [math.nan, "nan", "\ud800"])
def test_what_names_no_class_is_no_label_and_no_tag(tmp_path, label):
    rows = [{"text": f"row {i}", "l": [label, "b"]} for i in range(20)]
    with pytest.raises(UserError, match="allowed: a list of labels"):
        own(written(tmp_path, rows), text="text", label="l")
    if label == "\ud800":
        rows = [{"w": [f"w{i}", "b"], "t": [label, "O"]} for i in range(20)]
        with pytest.raises(UserError, match="allowed: a list of tags"):
            own(written(tmp_path, rows), text="w", label="t")


def test_an_answer_that_occurs_twice_needs_its_start_and_squads_form_is_read(tmp_path):
    rows = [{**row, "c": row["c"] + " Ada Lovelace!", "at": 3} for row in ANSWERS]
    with pytest.raises(UserError, match=r"row 0 .*occurs 2 times in its context.*\(20 such rows\)"):
        answers(tmp_path, rows)
    with pytest.raises(UserError, match="not at its answer_start: 'Ada Lovelace' at character 3"):
        answers(tmp_path, rows, answer_start="at")
    right = [{**row, "at": row["c"].index("Ada")} for row in rows]
    train = encoded(answers(tmp_path, right, answer_start="at"))
    assert train.lost_answers == 0
    squad = [
        {**row, "a": {"text": ["Ada Lovelace", "Ada"], "answer_start": [row["at"]] * 2}}
        for row in right
    ]
    spec = own(written(tmp_path, squad), text=["q", "c"], label="a")
    golds = encoded(spec)
    assert spec.kind == "answer"
    assert stored_texts(golds.golds, golds.gold_offsets)[0] == '["Ada Lovelace", "Ada"]'
    (tmp_path / "rows.jsonl").unlink()
    empty = [{**row, "a": " "} for row in ANSWERS]
    with pytest.raises(UserError, match="an empty answer: questions without one are not supported"):
        answers(tmp_path, empty)


REFUSED = {
    "texts that are no labels": (
        labels,
        {"text": "topics", "label": "text", "kind": "multilabel", "separator": " "},
        "21 different labels in 20 rows",
    ),
    "a label that is not in labels": (
        labels,
        {"labels": ["food", "x"]},
        "'price'.*not one of food, x",
    ),
    "a metric of another kind": (labels, {"metric": "micro_f"}, "nearest: micro_f1"),
    "a key of another kind": (labels, {"answer_start": "at"}, "no column 'at'"),
    "weights of no label": (labels, {"class_weights": {"foood": 2.0}}, "'foood' .*nearest: food"),
    "two texts of tags": (tags, {"text": ["tokens", "tags2"]}, "no column 'tags2'"),
    "a longest answer of labels": (labels, {"longest_answer": 3}, "which has no longest_answer"),
    "a threshold of tags": (tags, {"threshold": 0.4}, "is a tags, which has no threshold"),
    "one text of an answer": (answers, {"text": ["q"]}, "needs two: the question, the context"),
    "a metric twice": (labels, {"metrics": ["lrap", "lrap"]}, "names a metric twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_one_line(tmp_path, case):
    make, row, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as raised:
        make(tmp_path, **row)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**TAGS[0], "tags": ["O"]}], "4 words and 1 tags"),
        ([{**TAGS[0], "tokens": "Ada wrote"}], "a list of words"),
        ([{**TAGS[0], "tags": ["O", "B PER", "O", "O"]}], "texts without blanks"),
    ],
)
def test_words_and_tags_that_do_not_fit_are_counted(tmp_path, rows, message):
    with pytest.raises(UserError, match=rf"row 2 .*{message}.*\(2 such rows\)"):
        tags(tmp_path, [*TAGS[:2], *rows * 2, *TAGS[2:]], kind="tags")


def test_rows_have_an_order_of_labels_metrics_weights_a_prefix_and_test_rows(tmp_path):
    spec = labels(
        tmp_path,
        labels=["price", "food", "place"],
        metrics=["lrap", "micro_f1"],
        class_weights={"food": 2},
        prefix="query: ",
        test=written(tmp_path, LABELS[:3], "test.jsonl"),
        sampling_weight=0.5,
    )
    assert spec.labels == ("price", "food", "place") and spec.class_weights == (1.0, 2.0, 1.0)
    assert (spec.metric, spec.metrics, spec.sampling_weight) == ("lrap", ("lrap", "micro_f1"), 0.5)
    test = encoded(spec, "test")
    assert test.num_examples == 3 and test.label_sets.sum(axis=0).tolist() == [2, 1, 0]
    words = minilm_tokenizer().decode(test.input_ids[: test.offsets[1]])
    assert words.startswith("[CLS] query : row 0")


def test_balanced_weights_follow_from_the_rows_that_are_trained_on(tmp_path):
    spec = replace(labels(tmp_path), balanced=True)
    train = encoded(spec)
    counts = train.label_sets.sum(axis=0)
    assert balanced(spec, train).class_weights == pytest.approx((18 - counts) / counts)
    spec = tags(tmp_path, class_weights="balanced")
    words = np.bincount(encoded(spec).unit_labels)
    assert balanced(spec, encoded(spec)).class_weights == pytest.approx(words.sum() / 3 / words)
