"""Intervals: the weighted metrics are the metrics, closed forms, and how often they cover."""

import numpy as np
import pytest
from scipy import stats

from ds_moe_mtl.evaluation.bootstrap import drawn_scores, interval, weighted_score
from ds_moe_mtl.tasks.metrics import METRICS
from tests.support.units import make_units


@pytest.mark.parametrize(
    ("metric", "classes"),
    [(metric, n) for n in (2, 5) for metric in ("accuracy", "matthews", "f1", "macro_f1")],
)
def test_a_class_metric_of_weighted_rows_is_that_of_repeated_rows(metric, classes):
    draw = np.random.default_rng(classes)
    truth, answer = draw.integers(classes, size=(2, 40))
    weights = draw.integers(0, 3, size=(6, 40))
    weights[5, truth != 0] = 0  # one class alone is left
    found = weighted_score(make_units(truth, answer, metric), weights.astype(float))
    for row, value in zip(weights, found, strict=True):
        assert value == pytest.approx(
            METRICS[metric](np.repeat(truth, row), np.repeat(answer, row))
        )


@pytest.mark.parametrize("metric", ["spearman", "pearson"])
def test_a_correlation_of_weighted_rows_is_that_of_repeated_rows(metric):
    draw = np.random.default_rng(1)
    truth = draw.integers(6, size=50) / 5  # ties
    answer = (truth + draw.normal(size=50)).round(1)
    weights = draw.integers(0, 3, size=(6, 50))
    weights[5, truth != truth[0]] = 0  # constant labels: counted as 0
    found = weighted_score(make_units(truth, answer, metric), weights.astype(float))
    for row, value in zip(weights, found, strict=True):
        expected = METRICS[metric](np.repeat(truth, row), np.repeat(answer, row))
        assert value == pytest.approx(expected, abs=1e-12)


def test_one_seed_on_rows_has_the_interval_of_a_binomial():
    generator = np.random.default_rng(0)
    right, wrong = np.ones(100, int), np.r_[np.zeros(20, int), np.ones(80, int)]
    sides = [[make_units(right, right)], [make_units(right, wrong)]]
    scores = drawn_scores(sides, 4000, generator)
    found = interval(np.array([20.0]), scores[0] - scores[1], generator)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.2)
    assert found.value == 20.0 and (found.low, found.high) == pytest.approx((low, high), abs=1)


def test_seeds_without_any_noise_of_rows_have_the_t_interval_of_two_values():
    found = interval(
        np.array([100.0, 0.0]), np.tile([100.0, 0.0], (500, 1)), np.random.default_rng(0)
    )
    wider = stats.t.ppf(0.975, 1) / stats.norm.ppf(0.975)
    assert found.value == 50 and not found.excludes_zero
    assert (found.low, found.high) == pytest.approx((50 - 50 * wider, 50 + 50 * wider))


def test_the_same_rows_are_drawn_on_both_sides_and_in_all_seeds():
    draw = np.random.default_rng(0)
    truth, answer = draw.integers(2, size=(2, 60))
    units = make_units(truth, answer)
    scores = drawn_scores([[units, units], [units, units]], 50, draw)
    assert (scores == scores[0, :, :1]).all() and scores.std(axis=1).min() > 0


def test_rows_that_seeds_do_not_share_are_drawn_apart():
    truth = np.ones(60, int)
    answer = np.r_[np.zeros(30, int), np.ones(30, int)]
    near, far = (make_units(truth, answer, ids=np.arange(60) + by) for by in (0, 60))
    apart = drawn_scores([[near, far]], 3000, np.random.default_rng(0))[0]
    together = drawn_scores([[near, near]], 3000, np.random.default_rng(0))[0]
    assert abs(np.corrcoef(apart.T)[0, 1]) < 0.1 and np.corrcoef(together.T)[0, 1] > 0.99


@pytest.mark.parametrize(("seeds", "over_seeds", "over_rows"), [(3, 2.0, 30.0), (5, 3.0, 10.0)])
def test_a_95_percent_interval_covers_the_truth_about_that_often(seeds, over_seeds, over_rows):
    draw = np.random.default_rng(7)
    rows, trials, truth, covered = 150, 400, 1.0, 0
    for _ in range(trials):
        difference = (
            truth
            + over_seeds * draw.normal(size=(seeds, 1))
            + over_rows * draw.normal(size=rows)
            + 20 * draw.normal(size=(seeds, rows))
        )
        zeros = np.zeros(rows)
        runs = [make_units(zeros, row / 100, "mean") for row in difference]
        drawn = drawn_scores([runs], 300, draw)[0]
        found = interval(difference.mean(axis=1), drawn, draw)
        covered += found.low <= truth <= found.high
    assert 0.925 <= covered / trials <= 0.985
