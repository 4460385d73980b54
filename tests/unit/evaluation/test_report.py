"""Reports of scores: calibration by hand, classes as scikit-learn has them, lines that fit."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.evaluation.calibration import Confidences, calibration, confidences
from ds_moe_mtl.evaluation.report import task_report
from ds_moe_mtl.evaluation.report_lines import WIDTH, report_lines, summary_lines
from ds_moe_mtl.tasks import TaskSpec


def split_of(rows, **arrays):
    """Return a split of `rows` examples of two tokens each."""
    return EncodedSplit(
        input_ids=np.arange(2 * rows, dtype=np.int32),
        offsets=2 * np.arange(rows + 1),
        second_start=np.full(rows, 2, np.int32),
        labels=arrays.pop("labels", np.zeros(rows, np.float32)),
        weights=np.ones(rows, np.float32),
        questions=arrays.pop("questions", np.arange(rows)),
        parts=np.zeros(rows, np.int8),
        **arrays,
    )


def of_classes(number, rows=400, seed=0):
    """Return a classification's row, its split and outputs that are often right."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(number, size=rows)
    outputs = draw.normal(size=(rows, number)).astype(np.float32)
    outputs[np.arange(rows), labels] += 1.5
    names = tuple(f"class number {n}" for n in range(number))
    spec = TaskSpec("t", "classification", ("text",), labels=names, metric="macro_f1")
    return spec, split_of(rows, labels=labels.astype(np.float32)), outputs


def report_of(spec, split, outputs, worst=2):
    columns = {name: [f"text {n}" for n in range(split.num_examples)] for name in spec.inputs}
    places = list(range(split.num_examples))
    return task_report(spec, split, outputs, None, columns, places, worst)


def test_the_calibration_error_is_the_one_by_hand():
    # Three bins of 15: (2/15, 3/15], (7/15, 8/15] and the last; an upper end is in its bin.
    shares = np.array([0.15, 0.2, 0.5, 0.5, 0.95, 1.0])
    right = np.array([0, 1, 1, 1, 1, 0])
    found = calibration(Confidences("x", shares, right))
    by_hand = (abs(0.35 - 1) + abs(1.0 - 2) + abs(1.95 - 1)) / 6
    assert found["error"] == pytest.approx(100 * by_hand)
    assert [each["count"] for each in found["bins"]] == [2, 2, 2]
    assert [each["low"] for each in found["bins"]] == pytest.approx([2 / 15, 7 / 15, 14 / 15])


def test_probabilities_are_those_of_what_is_given_or_of_every_label():
    spec, split, outputs = of_classes(3)
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    found = confidences(spec, outputs, split)
    assert found.share_N == pytest.approx(shares.max(axis=1), rel=1e-5)
    assert (found.right_N == (outputs.argmax(axis=1) == split.labels)).all()
    several = TaskSpec("t", "multilabel", ("text",), labels=("a", "b"), metric="micro_f1")
    sets = np.array([[1, 0], [0, 1]], np.int8)
    logits = np.array([[0.0, np.log(3)], [-np.log(3), 0.0]])
    found = confidences(several, logits, split_of(2, label_sets=sets))
    assert found.share_N == pytest.approx([0.5, 0.75, 0.25, 0.5])
    assert found.right_N.tolist() == [True, False, False, True]
    options = TaskSpec("t", "options", ("text",), choices=("choices",))
    three = split_of(3, labels=np.array([0, 1, 1], np.float32), questions=np.array([0, 0, 1]))
    found = confidences(options, np.array([[np.log(3)], [0.0], [5.0]]), three)
    assert found.share_N == pytest.approx([0.75, 1.0]) and found.right_N.tolist() == [False, True]


def test_classes_and_mistakes_are_scikit_learns():
    spec, split, outputs = of_classes(4)
    report = report_of(spec, split, outputs)
    truth, given = split.labels.astype(int), outputs.argmax(axis=1)
    wanted = precision_recall_fscore_support(truth, given)
    for key, values in zip(("precision", "recall", "f1", "rows"), wanted, strict=True):
        scale = 1 if key == "rows" else 100
        assert [each[key] for each in report["classes"]] == pytest.approx(scale * values)
    counts = confusion_matrix(truth, given)
    assert report["confusion"]["counts"] == counts.tolist()
    off = counts - np.diag(np.diag(counts))
    assert report["confusion"]["mistakes"][0]["examples"] == off.max()
    # The last row is of largest cross-entropy by scikit-learn's own reckoning too.
    losses = np.log(np.exp(outputs.astype(float)).sum(axis=1)) - outputs[np.arange(400), truth]
    assert [each["row"] for each in report["worst"]] == np.argsort(-losses)[:2].tolist()
    assert report["mean_cost"] == pytest.approx(losses.mean(), rel=1e-5)


def test_labels_and_entities_are_scored_each_by_itself():
    draw = np.random.default_rng(1)
    sets, logits = draw.integers(2, size=(90, 3)), draw.normal(size=(90, 3))
    spec = TaskSpec("t", "multilabel", ("text",), labels=("a", "b", "c"), metric="micro_f1")
    report = report_of(spec, split_of(90, label_sets=sets.astype(np.int8)), logits)
    wanted = precision_recall_fscore_support(sets, (logits >= 0).astype(int))
    assert [each["f1"] for each in report["classes"]] == pytest.approx(100 * wanted[2])
    tags = ("B-X", "B-Y", "I-X", "O")
    truth, given = np.array([0, 2, 3, 1, 0, 3]), np.array([0, 2, 1, 1, 3, 3])
    words = {
        "unit_places": np.array([0, 1, 1, 0, 1, 1], np.int32),
        "unit_offsets": np.array([0, 3, 6]),
        "unit_labels": truth.astype(np.int32),
        "unit_words": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "word_tags": truth.astype(np.int32),
        "word_offsets": np.array([0, 3, 6]),
    }
    spec = TaskSpec("t", "tags", ("words",), "tags", labels=tags, metric="entity_f1")
    report = report_of(spec, split_of(2, **words), 3.0 * np.eye(4)[given])
    scores = [[each[key] for key in ("name", "precision", "recall")] for each in report["classes"]]
    assert scores == [["X", 100.0, 50.0], ["Y", 50.0, 100.0]]
    assert report["worst"][0]["cost"] == pytest.approx(
        np.log(np.e**3 + 3) - 2
    )  # of 3 words 2 right


@pytest.mark.parametrize("number", [2, 30])
def test_a_report_fits_the_terminal_for_few_and_many_classes(number):
    spec, split, outputs = of_classes(number)
    report = report_of(spec, split, outputs)
    lines = [*summary_lines({"a" * 60: report}, "dev"), *report_lines("a" * 60, report)]
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert ("most confused" in text) is (number == 30)
    assert ("given class in columns" in text) is (number == 2)
