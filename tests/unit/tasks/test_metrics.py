"""Scores against scikit-learn, scipy, examples worked by hand, and the paper's own averages."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from ds_moe_mtl.tasks import TaskSpec, get_task
from ds_moe_mtl.tasks.metrics import (
    METRIC_NOTES,
    OWN_KINDS,
    average_half_up,
    metrics_of,
    positive_class,
    score,
)


def scored(task, outputs, labels, questions=None, parts=None):
    outputs, labels = np.asarray(outputs, "f4"), np.asarray(labels, "f4")
    questions = np.arange(len(labels)) if questions is None else np.asarray(questions)
    parts = np.zeros(len(labels), "i1") if parts is None else np.asarray(parts)
    return score(get_task(task), outputs, labels, questions, parts)


def random_case(classes: int, count: int = 200):
    random = np.random.default_rng(classes)
    return random.normal(size=(count, classes)), random.integers(0, max(classes, 2), count)


def test_accuracy_is_the_share_of_right_argmaxes():
    assert scored("rte", [[2, 1], [0, 1], [3, -1], [0, 5]], [0, 1, 1, 1]) == 75.0


def test_matthews_and_f1_are_scikit_learns():
    outputs, labels = random_case(2)
    predicted = outputs.argmax(1)
    assert scored("cola", outputs, labels) == pytest.approx(
        100 * matthews_corrcoef(labels, predicted)
    )
    assert scored("multirc", outputs, labels) == pytest.approx(100 * f1_score(labels, predicted))


def test_spearman_is_scipys():
    outputs, labels = random_case(1)
    expected = 100 * spearmanr(outputs[:, 0], labels).statistic
    assert scored("stsb", outputs, labels) == pytest.approx(expected, abs=1e-4)


def test_f1a_pools_the_answer_options_of_all_questions():
    # Options chosen: 3, of them right: 2; right options: 4. Precision 2/3, recall 1/2, F1 4/7.
    chosen = [1, 1, 1, 0, 0, 0]
    right = [1, 1, 0, 1, 1, 0]
    outputs = [[0, 1] if choice else [1, 0] for choice in chosen]
    assert scored("multirc", outputs, right, questions=range(6)) == pytest.approx(400 / 7)


def test_ranking_takes_the_candidate_with_the_larger_true_logit():
    # Question 0: the wrong one has the larger "true" logit. Question 1: the right one, although
    # its "false" logit is larger still and the sequences come in another order.
    outputs = [[0.0, 0.2], [9.0, 1.5], [0.0, 0.9], [-3.0, 1.0]]
    questions, labels = [0, 1, 0, 1], [1, 1, 0, 0]
    assert scored("copa", outputs, labels, questions) == 50.0


def test_mnli_is_the_plain_mean_of_its_two_dev_splits():
    outputs = np.eye(3)[[0, 0, 0, 1]]
    # Matched: 3 of 3 right. Mismatched: 0 of 1.
    assert scored("mnli", outputs, [0, 0, 0, 2], parts=[0, 0, 0, 1]) == 50.0


@pytest.mark.parametrize("task, width", [("stsb", 1), ("cola", 2)])
def test_constant_outputs_give_a_correlation_of_zero(task, width):
    assert scored(task, np.zeros((4, width)), [0, 1, 0, 1]) == 0.0


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="rte.*not finite"):
        scored("rte", [[np.nan, 1.0]], [1])


def test_labels_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="stsb.*the labels are not finite"):
        scored("stsb", [[1.0], [2.0]], [np.inf, 1.0])


@pytest.mark.parametrize(
    ("metric", "kind", "width", "words"),
    [
        ("f1", "classification", 3, "'f1' scores two classes, and there are 3; allowed: accuracy"),
        ("f1a", "span", 4, "'f1a' scores two classes, and there are 4"),
        ("spearman", "classification", 2, "'spearman' does not score a classification; allowed"),
        ("f1", "regression", 1, "'f1' does not score a regression; allowed: spearman, pearson"),
    ],
)
def test_a_metric_that_cannot_score_the_outputs_is_refused(metric, kind, width, words):
    spec = TaskSpec("t", kind, ("text",), labels=tuple("abcd"[:width]), metric=metric)
    outputs, labels = np.eye(4, width, dtype="f4"), np.zeros(4, "f4")
    with pytest.raises(ValueError, match=words):
        score(spec, outputs, labels, np.arange(4), np.zeros(4, "i1"))


def test_f1_of_options_needs_two_of_them():
    spec = TaskSpec("t", "options", ("text",), choices=("choices",), metric="f1")
    with pytest.raises(ValueError, match="'f1' scores two classes, and there are 3"):
        score(spec, np.zeros((3, 1)), np.eye(3)[0], np.zeros(3, int), np.zeros(3, "i1"))


def test_f1_is_of_the_second_class_which_has_a_name():
    spec = TaskSpec("t", "classification", ("text",), labels=("ham", "spam"), metric="f1")
    truth, guess = np.array([1, 1, 0, 0, 0]), [1, 0, 0, 0, 1]
    value = score(spec, np.eye(2)[guess], truth.astype("f4"), np.arange(5), np.zeros(5))
    assert value == pytest.approx(100 * f1_score(truth, guess)) and positive_class(spec) == "spam"
    assert positive_class(get_task("rte")) is None


@pytest.mark.parametrize("size", [1.0, 3e38])
def test_pearson_is_that_of_float64(size):
    random = np.random.default_rng(0)
    labels = (1000 + 1e-3 * random.normal(size=300)).astype("f4")
    outputs = (size * (0.5 + 1e-4 * random.normal(size=300))).astype("f4")
    spec = TaskSpec("t", "regression", ("text",), metric="pearson")
    expected = np.corrcoef(labels.astype("f8"), outputs.astype("f8") / size)[0, 1]
    value = score(spec, outputs[:, None], labels, np.arange(300), np.zeros(300))
    assert value == pytest.approx(100 * expected, rel=1e-9)


def test_every_metric_that_a_task_may_name_is_explained():
    assert {name for kind in OWN_KINDS for name in metrics_of(kind)} <= METRIC_NOTES.keys()


def test_averages_round_half_up():
    # Table 1, MT-TaG: the small tasks' mean is 75.875, that of all 82.525 exactly.
    assert average_half_up([75.875], 2) == 75.88
    assert average_half_up([82.525], 2) == 82.53
    assert average_half_up([79.46, 79.47], 2) == 79.47


def test_averages_reproduce_the_printed_ones_of_table_11():
    # BERT-Base: RTE, MRPC, STS-B, CoLA (the small ones), SST-2, QNLI, QQP, MNLI.
    single = [71.4, 84.8, 89.1, 60.8, 92.9, 91.9, 91.4, 84.4]
    mt_tag = [81.1, 90.7, 90.4, 60.7, 92.9, 91.8, 91.4, 84.6]
    assert average_half_up(single[:4], 2) == 76.53 and average_half_up(single, 2) == 83.34
    assert average_half_up(mt_tag[:4], 2) == 80.73 and average_half_up(mt_tag, 2) == 85.45
