"""Dev rows as units: options and generated answers score as the library's own scorers do."""

import numpy as np
import pytest

from ds_moe_mtl.evaluation.bootstrap import weighted_score
from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.evaluation.units import units_of
from ds_moe_mtl.tasks.text_metrics import score_text
from tests.support.predictions import score_predictions


def score_of(units):
    return 100 * weighted_score(units, np.ones((1, len(units.truth_U))))[0]


@pytest.mark.parametrize("metric", ["exact_match", "accuracy", "macro_f1", "matthews"])
def test_options_are_units_by_question(metric):
    draw = np.random.default_rng(0)
    questions = np.repeat(np.arange(30), 3)
    labels = np.eye(3)[draw.integers(3, size=30)].ravel()
    rows = np.arange(90, dtype=np.uint32)
    parts = np.zeros(90, np.int8)
    scores = draw.normal(size=(90, 1))
    task = TaskPredictions("options", metric, (), scores, labels, questions, parts, rows)
    units = units_of(task)
    assert len(units.truth_U) == 30 == len(np.unique(units.ids_U))
    assert score_of(units) == pytest.approx(score_predictions(task))


@pytest.mark.parametrize(
    ("metric", "said", "wanted"),
    [
        ("exact_match", ["The cat.", "dog", "bird"], ["cat", "a dog", "fish"]),
        ("word_f1", ["a red cat", "dog", ""], ["red dog", "dog", "bird"]),
        ("rouge_l", ["a red cat", "dog", "one"], ["red dog", "dog", "two"]),
        ("macro_f1", ["yes", "no", "perhaps"], ["yes", "yes", "no"]),
        ("matthews", ["yes", "no", "yes", "no"], ["yes", "no", "no", "no"]),
        ("pearson", ["1.5", "none", "3", "2"], ["1", "2", "3.5", "2.5"]),
    ],
)
def test_generated_answers_are_units_by_answer(metric, said, wanted):
    count = len(said)
    zeros = np.zeros(count, np.int8)
    rows = np.arange(count, dtype=np.uint32)
    task = TaskPredictions(
        "text", metric, (), np.array(said), np.array(wanted), np.arange(count), zeros, rows
    )
    assert score_of(units_of(task)) == pytest.approx(score_text(metric, said, wanted))
