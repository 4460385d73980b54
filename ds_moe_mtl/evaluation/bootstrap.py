"""Intervals from drawing again: which dev rows, and which seeds, might as well have been.

B draws, U units (dev rows or questions), S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.evaluation.units import DevUnits, units_of

LEVEL = 0.95
DRAWS = 2000
SEED = 0  # of the draws of one run: the same rows give the same interval
_AT_ONCE = 250  # draws whose weights are in memory together, of up to 100,000 rows
_MOST_PICKS = 200_000_000  # rows of all draws together, where one run is told about


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, in the scores' own points."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference of nothing lies outside."""
        return self.low > 0 or self.high < 0


def interval(observed_S: np.ndarray, drawn_BS: np.ndarray, generator: np.random.Generator):
    """Return the Interval of a mean over seeds.

    observed_S: each seed's value. drawn_BS: the same on dev rows that were drawn again, the same
    draw in all seeds. One seed: what other dev rows would give, and nothing about other seeds.

    Seeds and rows are drawn together: each draw takes S - 1 of the S seeds with replacement, so
    that the variance of a mean over few seeds is not understated (S of S would give (S - 1) / S of
    it; Rao and Wu, 1988). The ends of the percentile interval are then moved out by Student's t
    over the normal quantile, with Satterthwaite's degrees of freedom for a sum of a variance over
    S seeds and one over many rows (Hesterberg, 2015, on why percentiles alone are too narrow).
    """
    from scipy import stats

    number = len(observed_S)
    value = float(observed_S.mean())
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    if number == 1:
        low, high = np.quantile(drawn_BS[:, 0], tails)
        return Interval(value, float(low), float(high))
    picks = generator.integers(number, size=(len(drawn_BS), number - 1))
    means_B = np.take_along_axis(drawn_BS, picks, axis=1).mean(axis=1)
    over_seeds = observed_S.var(ddof=1) / number
    over_rows = drawn_BS.mean(axis=1).var()
    wider = 1.0
    if over_seeds > 0:
        degrees = (number - 1) * ((over_seeds + over_rows) / over_seeds) ** 2
        wider = stats.t.ppf(tails[1], degrees) / stats.norm.ppf(tails[1])
    low, high = value + wider * (np.quantile(means_B, tails) - value)
    return Interval(value, float(low), float(high))


def score_interval(task: TaskPredictions) -> dict | None:
    """Return {"low", "high", "level", "draws"} of a task's score over its rows; None of a metric
    that is not made of rows.

    In percent. There are DRAWS draws, fewer (at least 200) of very many rows.
    """
    try:
        units = units_of(task)
    except UserError:
        return None
    draws = int(np.clip(_MOST_PICKS // len(units.truth_U), 200, DRAWS))
    drawn_BS = drawn_scores([[units]], draws, np.random.default_rng(SEED))[0]
    found = interval(drawn_BS.mean(axis=0), drawn_BS, np.random.default_rng(SEED))
    return {"low": found.low, "high": found.high, "level": LEVEL, "draws": draws}


def drawn_scores(
    runs: Sequence[Sequence[DevUnits]], draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Return scores in percent on dev rows that are drawn again, float64 [sides, B, S].

    runs: by side, one task's units by seed. A draw has the same rows on all sides and in all seeds.
    Where seeds have different samples of the dev rows, rows are drawn from all that any seed has.
    Each of the task's dev splits is drawn by itself.
    """
    parts = np.unique(np.concatenate([units.parts_U for units in runs[0]]))
    total = np.zeros((len(runs), draws, len(runs[0])))
    for part in parts:
        seeds = [[_part(units, part) for units in side] for side in runs]
        pool = np.unique(np.concatenate([units.ids_U for units in seeds[0]]))
        places = [np.searchsorted(pool, units.ids_U) for units in seeds[0]]
        at_once = max(1, min(_AT_ONCE, 100_000 * _AT_ONCE // len(pool)))
        for first in range(0, draws, at_once):
            here = slice(first, min(first + at_once, draws))
            weights_BP = _counts(len(pool), here.stop - here.start, generator)
            for seed, place in enumerate(places):
                weights_BU = weights_BP[:, place]
                for side, units in enumerate(seeds):
                    total[side, here, seed] += weighted_score(units[seed], weights_BU)
    return 100 * total / len(parts)


def weighted_score(units: DevUnits, weights_BU: np.ndarray) -> np.ndarray:
    """Return the metric, 0 to 1, on each draw, float64 [B]; weights say how often a unit is in it.

    Equal to the metric of the rows repeated so often. The units are of one dev split.
    """
    if units.metric == "mean":
        return _ratio(weights_BU @ units.answer_U, weights_BU.sum(axis=1))
    if units.metric == "spearman":
        ranks = [_ranks(values, weights_BU) for values in (units.truth_U, units.answer_U)]
        return _pearson(*ranks, weights_BU)
    if units.metric == "pearson":
        return _pearson(units.truth_U[None], units.answer_U[None], weights_BU)
    if units.metric == "ratio":
        return _ratio(weights_BU @ units.answer_U, weights_BU @ units.truth_U)
    if units.metric in _OTHER_SCORES:
        return _OTHER_SCORES[units.metric](units.truth_U, units.answer_U, weights_BU)
    return _CLASS_SCORES[units.metric](*_class_counts(units, weights_BU))


def _part(units: DevUnits, part: int) -> DevUnits:
    rows = units.parts_U == part
    return DevUnits(
        units.metric,
        units.truth_U[rows],
        units.answer_U[rows],
        units.parts_U[rows],
        units.ids_U[rows],
        units.sha256,
    )


def _counts(size: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each of `size` units is in each draw of as many, float64 [draws, size]."""
    picks = generator.integers(size, size=(draws, size))
    picks += size * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=draws * size)
    return counts.reshape(draws, size).astype(np.float64)


def _class_counts(units: DevUnits, weights_BU: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return by class: right answers, units of it, answers of it, each [B, classes]."""
    classes = np.arange(1 + max(int(units.truth_U.max()), int(units.answer_U.max()), 1))
    truth_UK = units.truth_U[:, None] == classes
    answer_UK = units.answer_U[:, None] == classes
    return tuple(weights_BU @ of for of in (truth_UK & answer_UK, truth_UK, answer_UK))


def _accuracy(right_BK, truth_BK, answer_BK) -> np.ndarray:
    return _ratio(right_BK.sum(axis=1), truth_BK.sum(axis=1))


def _f1(right_BK, truth_BK, answer_BK) -> np.ndarray:
    return _ratio(2 * right_BK[:, 1], truth_BK[:, 1] + answer_BK[:, 1])


def _macro_f1(right_BK, truth_BK, answer_BK) -> np.ndarray:
    """The mean over classes that are there, as scikit-learn's."""
    both_BK = truth_BK + answer_BK
    return _ratio(_ratio(2 * right_BK, both_BK).sum(axis=1), (both_BK > 0).sum(axis=1))


def _matthews(right_BK, truth_BK, answer_BK) -> np.ndarray:
    """The coefficient for any number of classes; 0 where it is undefined."""
    total_B = truth_BK.sum(axis=1)
    above_B = right_BK.sum(axis=1) * total_B - (truth_BK * answer_BK).sum(axis=1)
    spreads_B = [total_B**2 - (by_BK**2).sum(axis=1) for by_BK in (truth_BK, answer_BK)]
    return _ratio(above_B, np.sqrt(spreads_B[0] * spreads_B[1]))


_CLASS_SCORES = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}


def _ranks(values_U: np.ndarray, weights_BU: np.ndarray) -> np.ndarray:
    """Return the ranks of values that occur `weights` times, ties shared, float64 [B, U]."""
    order = np.argsort(values_U, kind="stable")
    ordered = values_U[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ties_BG = np.add.reduceat(weights_BU[:, order], starts, axis=1)
    ranks_BG = np.cumsum(ties_BG, axis=1) - (ties_BG - 1) / 2
    group_U = np.empty(len(values_U), np.int64)
    group_U[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    return ranks_BG[:, group_U]


def _pearson(one_BU: np.ndarray, other_BU: np.ndarray, weights_BU: np.ndarray) -> np.ndarray:
    """Return weighted correlations; 0 where one side is constant."""
    total_B1 = weights_BU.sum(axis=1, keepdims=True)
    centred = [
        by_BU - _ratio((weights_BU * by_BU).sum(axis=1, keepdims=True), total_B1)
        for by_BU in (one_BU, other_BU)
    ]
    squares_B = [(weights_BU * by_BU**2).sum(axis=1) for by_BU in centred]
    above_B = (weights_BU * centred[0] * centred[1]).sum(axis=1)
    return _ratio(above_B, np.sqrt(squares_B[0] * squares_B[1]))


def _r2(truth_U: np.ndarray, answer_U: np.ndarray, weights_BU: np.ndarray) -> np.ndarray:
    """Return 1 - squared errors / squared distances from the mean; 0 where labels are constant."""
    truth_U, answer_U = truth_U.astype(np.float64), answer_U.astype(np.float64)
    total_B = weights_BU.sum(axis=1)
    mean_B = _ratio(weights_BU @ truth_U, total_B)
    spread_B = (weights_BU * (truth_U - mean_B[:, None]) ** 2).sum(axis=1)
    errors_B = weights_BU @ (truth_U - answer_U) ** 2
    return np.where(spread_B > 1e-9, 1 - _ratio(errors_B, spread_B), 0.0)


def _qwk(truth_U: np.ndarray, answer_U: np.ndarray, weights_BU: np.ndarray) -> np.ndarray:
    """Return the quadratic weighted kappa of numbers; 0 where there is one number only.

    The disagreement to expect of independent answers is the mean over all pairs of a truth and an
    answer of their squared distance: it follows from means and mean squares.
    """
    truth_U, answer_U = truth_U.astype(np.float64), answer_U.astype(np.float64)
    total_B = weights_BU.sum(axis=1)

    def mean_B(values_U: np.ndarray) -> np.ndarray:
        return _ratio(weights_BU @ values_U, total_B)

    seen_B = mean_B((truth_U - answer_U) ** 2)
    expected_B = mean_B(truth_U**2) + mean_B(answer_U**2)
    expected_B = expected_B - 2 * mean_B(truth_U) * mean_B(answer_U)
    return np.where(expected_B > 1e-9, 1 - _ratio(seen_B, expected_B), 0.0)


def _label_macro_f1(
    truth_U: np.ndarray, answer_U: np.ndarray, weights_BU: np.ndarray
) -> np.ndarray:
    """Return the mean over labels of their F1; a bit stands for a label, the truth's highest for
    their end.

    A label that is neither there nor given in a draw counts as 0, as in the score itself.
    """
    total = 0.0
    labels = int(truth_U.max()).bit_length() - 1
    for label in range(labels):
        there_U, given_U = (truth_U >> label) & 1, (answer_U >> label) & 1
        total = total + _ratio(
            2 * weights_BU @ (there_U & given_U), weights_BU @ (there_U + given_U)
        )
    return total / labels


_OTHER_SCORES = {"r2": _r2, "qwk": _qwk, "label_macro_f1": _label_macro_f1}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, 0 where below is 0 (to rounding)."""
    enough = below > 1e-9
    return np.where(enough, above / np.where(enough, below, 1), 0.0)
