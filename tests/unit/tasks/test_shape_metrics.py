"""Scores of labels, tags and answers against examples worked by hand and the libraries'."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, r2_score

from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.metrics import METRICS, score
from ds_moe_mtl.tasks.shape_metrics import (
    answer_scores,
    chosen_thresholds,
    entity_counts,
    given_labels,
    is_bio,
    score_labels,
    score_tags,
    stray_tags,
)

TRUTH = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
LOGITS = np.array([[2.0, -1.0, -0.5], [0.5, 3.0, -2.0], [-1.0, -1.0, -1.0]])
HALF = (0.5, 0.5, 0.5)


def test_labels_are_scored_by_hand_worked_numbers():
    # Given: {0}, {0, 1}, {}. Right: 0 once of two, 1 once of one, 2 missed.
    assert score_labels("micro_f1", LOGITS, TRUTH, HALF) == pytest.approx(2 * 2 / (3 + 3))
    assert score_labels("macro_f1", LOGITS, TRUTH, HALF) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert score_labels("subset_accuracy", LOGITS, TRUTH, HALF) == pytest.approx(1 / 3)
    # The right labels come first in each row; of the last line they are second and third.
    assert score_labels("lrap", LOGITS, TRUTH, HALF) == 1.0
    assert score_labels("lrap", LOGITS[:1, [1, 0, 2]], TRUTH[:1], HALF) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )


def test_a_threshold_is_the_one_with_the_best_f1_and_0_5_where_none_helps():
    generator = np.random.default_rng(0)
    logits, truth = generator.normal(size=(60, 3)) - 1, generator.random((60, 3)) < 0.3
    truth[:, 2] = False
    found = chosen_thresholds(logits, truth)
    assert found[2] == 0.5
    for label in range(2):
        p = 1 / (1 + np.exp(-logits[:, label]))
        every = [f1_score(truth[:, label], p >= t, zero_division=0) for t in np.append(p, 0.5)]
        own = f1_score(truth[:, label], given_labels(logits, found)[:, label])
        assert own == pytest.approx(max(every))


def test_entities_are_counted_as_conlleval_counts_them_malformed_ones_too():
    wanted = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    predicted = [["B-A", "I-A", "O", "I-B"], ["I-A", "I-A"]]  # I-B after O begins an entity
    assert entity_counts(predicted, wanted).tolist() == [[2, 2, 2], [0, 1, 1]]
    assert score_tags("entity_f1", predicted, wanted) == pytest.approx(2 * 2 / (3 + 3))
    assert score_tags("accuracy", predicted, wanted) == pytest.approx(3 / 6)
    assert score_tags("entity_f1", [["O"]], [["O"]]) == 0.0
    assert stray_tags(predicted) == 2 and stray_tags(wanted) == 0
    assert stray_tags([["B-A", "I-B", "I-B"]]) == 1


def test_entity_f1_is_seqevals():
    from seqeval.metrics import f1_score as seqeval_f1

    draw = np.random.default_rng(1)
    tags = np.array(["O", "B-A", "I-A", "B-B", "I-B"])
    wanted = [tags[draw.integers(5, size=n)].tolist() for n in range(1, 40)]
    predicted = [tags[draw.integers(5, size=n)].tolist() for n in range(1, 40)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = seqeval_f1(wanted, predicted)
    assert score_tags("entity_f1", predicted, wanted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tags", "bio"), [(["O", "B-X"], True), (["O"], False), (["S-X", "O"], False), (["B-"], False)]
)
def test_bio_is_b_and_i_with_a_type(tags, bio):
    assert is_bio(tags) == bio


def test_answers_count_as_the_nearest_right_one_by_squads_rules():
    predicted = ["the Norman Conquest", "in 1066", "France"]
    wanted = [["Norman conquest!"], ["1066", "in the year 1066"], ["Spain"]]
    assert answer_scores("exact_match", predicted, wanted).tolist() == [1, 0, 0]
    # "in 1066" has both words of "1066" in 2, of "in the year 1066" 2 of 2 and 3.
    assert answer_scores("word_f1", predicted, wanted).tolist() == pytest.approx([1, 0.8, 0])


def one(kind, metric, labels=()):
    return TaskSpec("t", kind, ("text",), labels=labels, metric=metric)


def test_kappa_and_r2_are_scikit_learns():
    draw = np.random.default_rng(2)
    truth, logits = draw.integers(4, size=30), draw.normal(size=(30, 4))
    rows, part = np.arange(30), np.zeros(30, dtype=int)
    found = score(one("classification", "qwk", tuple("abcd")), logits, truth, rows, part)
    expected = cohen_kappa_score(truth, logits.argmax(1), weights="quadratic")
    assert found == pytest.approx(100 * expected)
    outputs = truth[:, None] + draw.normal(size=(30, 1))
    scores = truth.astype(np.float32)
    found = score(one("regression", "r2"), outputs, scores, rows, part)
    assert found == pytest.approx(100 * r2_score(truth, outputs[:, 0]))
    found = score(one("regression", "qwk"), outputs, scores, rows, part)
    rounded = np.clip(np.round(outputs[:, 0]), 0, 3).astype(int)
    expected = cohen_kappa_score(truth, rounded, weights="quadratic")
    assert found == pytest.approx(100 * expected)


def test_kappa_of_one_class_and_r2_of_one_score_are_0_and_broken_scores_are_refused():
    same = np.ones(4, dtype=int)
    assert METRICS["qwk"](same, same) == METRICS["r2"](same * 1.0, np.arange(4.0)) == 0
    with pytest.raises(ValueError, match="whole numbers"):
        METRICS["qwk"](np.array([0.5, 1.0]), np.array([0.0, 1.0]))
