"""The embedded suite: always the same rows, no dev text in training, no label given away."""

import json
import subprocess
import sys
import zlib

import pytest

from ds_moe_mtl.tasks import known_tasks, task_groups
from ds_moe_mtl.tasks.synthetic import EMBEDDED, RELATED, UNRELATED, generate

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def suite():
    return {(spec.name, split): generate(spec.name, split) for spec in EMBEDDED for split in SPLITS}


def test_the_suite_covers_every_kind_of_task():
    kinds = {(spec.kind, len(spec.text), spec.num_outputs) for spec in EMBEDDED}
    assert {
        ("classification", 1, 2),
        ("classification", 2, 2),
        ("classification", 2, 3),
        ("regression", 2, 1),
        ("ranking", 1, 2),
        ("span", 2, 2),
    } <= kinds
    assert {name for pair in RELATED for name in pair} | {UNRELATED} <= set(
        task_groups()["embedded"]
    )


def test_rows_are_the_same_in_another_process(suite):
    code = (
        "import json, sys; from ds_moe_mtl.tasks.synthetic import generate;"
        "json.dump(generate('toy_sense', 'train'), sys.stdout)"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert json.loads(again) == suite["toy_sense", "train"]


def test_rows_are_the_same_under_every_version_of_python(suite):
    text = json.dumps([suite[spec.name, split] for spec in EMBEDDED for split in SPLITS])
    assert zlib.crc32(text.encode()) == 3817090753


def test_no_text_of_a_dev_split_is_in_any_train_split(suite):
    def texts(split):
        return {
            text
            for spec in EMBEDDED
            for column in spec.text[: 1 if spec.name in ("toy_inference", "toy_follows") else 2]
            for text in suite[spec.name, split][column]
        }

    assert texts("train") & texts("validation") == set()


def test_no_row_occurs_twice(suite):
    for spec in EMBEDDED:
        rows = [
            row
            for split in SPLITS
            for row in zip(
                *(suite[spec.name, split][name] for name in spec.text + spec.choices), strict=True
            )
        ]
        assert len(set(rows)) == len(rows), spec.name


def test_classes_are_balanced(suite):
    for spec in EMBEDDED:
        if spec.kind == "regression":
            continue
        for split in SPLITS:
            labels = suite[spec.name, split]["label"]
            for number in range(spec.num_outputs):
                share = labels.count(number) / len(labels)
                assert share == pytest.approx(1 / spec.num_outputs, abs=0.12), (spec.name, split)


def test_the_words_of_a_hypothesis_alone_do_not_give_its_label_away(suite):
    """Naive Bayes on the hypothesis alone stays near chance (a third)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    train, dev = suite["toy_inference", "train"], suite["toy_inference", "validation"]
    words = CountVectorizer(ngram_range=(1, 2))
    model = MultinomialNB().fit(words.fit_transform(train["hypothesis"]), train["label"])
    assert model.score(words.transform(dev["hypothesis"]), dev["label"]) < 0.5


def test_word_spans_hold_the_same_word(suite):
    for split in SPLITS:
        rows = suite["toy_sense", split]
        for row in range(len(rows["label"])):
            words = {
                rows[f"sentence{part}"][row][rows[f"start{part}"][row] : rows[f"end{part}"][row]]
                for part in (1, 2)
            }
            assert len({word.lower() for word in words}) == 1


def test_no_pair_is_the_same_text_twice(suite):
    for name in ("toy_paraphrase", "toy_similarity"):
        rows = suite[name, "train"]
        assert all(a != b for a, b in zip(rows["sentence1"], rows["sentence2"], strict=True))


def test_embedded_tasks_are_known_by_name():
    assert all(known_tasks()[spec.name] == spec for spec in EMBEDDED)
