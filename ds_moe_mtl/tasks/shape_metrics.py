"""Scores, 0 to 1, of answers that are more than one class: sets of labels, tags, parts of a text.

N examples, L labels.
"""

from collections.abc import Sequence

import numpy as np

from ds_moe_mtl.tasks.text_metrics import TEXT_METRICS

LABEL_METRICS = ("macro_f1", "micro_f1", "lrap", "subset_accuracy")
TAG_METRICS = ("entity_f1", "accuracy", "macro_f1")
ANSWER_METRICS = ("word_f1", "exact_match")
OUTSIDE = "O"
"""The tag of a word that is in no entity."""


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return each logit of a label as its probability, float64, of the same shape."""
    from scipy.special import expit

    return expit(outputs.astype(np.float64))


def given_labels(outputs_NL: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return which labels are given, bool [N, L]: those at or above their threshold."""
    return probabilities(outputs_NL) >= np.asarray(thresholds)


def score_labels(
    metric: str, outputs_NL: np.ndarray, truth_NL: np.ndarray, thresholds: Sequence[float]
) -> float:
    """Return a metric of LABEL_METRICS.

    F1 without a label that is right, wanted or given counts as 0; LRAP (label ranking average
    precision) reads no threshold, and an example without labels counts as 1, as in scikit-learn.
    """
    from sklearn.metrics import accuracy_score, f1_score, label_ranking_average_precision_score

    truth_NL = truth_NL.astype(int)
    if metric == "lrap":
        return label_ranking_average_precision_score(truth_NL, outputs_NL.astype(np.float64))
    given_NL = given_labels(outputs_NL, thresholds).astype(int)
    if metric == "subset_accuracy":
        return accuracy_score(truth_NL, given_NL)
    return f1_score(truth_NL, given_NL, average=metric.removesuffix("_f1"), zero_division=0)


def chosen_thresholds(outputs_NL: np.ndarray, truth_NL: np.ndarray) -> tuple[float, ...]:
    """Return for each label the probability from which its own F1 on these rows is best.

    Only midpoints between neighbouring probabilities and 0.5 are looked at; of equals the nearest
    to 0.5 wins, so a label that is right nowhere, or that no threshold helps, keeps 0.5. Rounded
    to 6 digits where that gives the same labels on these rows.
    """
    columns = zip(probabilities(outputs_NL).T, truth_NL.T, strict=True)
    return tuple(_threshold(p_N, truth_N > 0) for p_N, truth_N in columns)


def _threshold(p_N: np.ndarray, truth_N: np.ndarray) -> float:
    found = np.unique(p_N)
    candidates = np.unique(np.append((found[1:] + found[:-1]) / 2, 0.5))
    order = np.argsort(p_N)
    # Examples from each candidate on: all, and right ones.
    firsts = np.searchsorted(p_N[order], candidates, side="left")
    right_after = np.append(np.cumsum(truth_N[order][::-1])[::-1], 0)
    given, right = len(p_N) - firsts, right_after[firsts]
    f1 = 2 * right / np.maximum(given + truth_N.sum(), 1)
    best = candidates[f1 == f1.max()]
    threshold = float(best[np.abs(best - 0.5).argmin()])
    rounded = round(threshold, 6)
    return rounded if ((p_N >= rounded) == (p_N >= threshold)).all() else threshold


def is_bio(tags: Sequence[str]) -> bool:
    """Return whether tags mark entities in IOB2: O, B-X and I-X alone."""
    marks = [tag for tag in tags if tag != OUTSIDE]
    return bool(marks) and all(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in marks)


def stray_tags(sentences: Sequence[Sequence[str]]) -> int:
    """Return how many tags I-X follow no B-X or I-X: not valid IOB2."""
    stray = 0
    for tags in sentences:
        before = OUTSIDE
        for tag in tags:
            stray += tag[:2] == "I-" and before[2:] != tag[2:]
            before = tag
    return stray


def score_tags(
    metric: str, predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]
) -> float:
    """Return a metric of TAG_METRICS.

    entity_f1 is micro-averaged over entities with the right first and last word and the right
    type, as conlleval's: an I-X that follows no X begins an entity. The others are over words.
    """
    if metric == "entity_f1":
        right, given, there = entity_counts(predicted, wanted).sum(axis=0)
        return 2 * right / (given + there) if given + there else 0.0
    from sklearn.metrics import accuracy_score, f1_score

    predicted, wanted = ([tag for tags in rows for tag in tags] for rows in (predicted, wanted))
    if metric == "accuracy":
        return accuracy_score(wanted, predicted)
    return f1_score(wanted, predicted, average="macro", zero_division=0)


def entity_counts(
    predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]], kind: str | None = None
) -> np.ndarray:
    """Return each sentence's entities, int [N, 3]: right, given, there; kind: of that type only."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for given, there in zip(predicted, wanted, strict=True):
        sets = [
            {found for found in get_entities(list(tags)) if kind in (None, found[0])}
            for tags in (given, there)
        ]
        counts.append((len(sets[0] & sets[1]), len(sets[0]), len(sets[1])))
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def answer_scores(
    metric: str, predicted: Sequence[str], wanted: Sequence[Sequence[str]]
) -> np.ndarray:
    """Return each example's metric of ANSWER_METRICS, by SQuAD's rules [N].

    wanted: the answers that are right, of which the one nearest to what was predicted counts.
    """
    function = TEXT_METRICS[metric]
    return np.array(
        [
            max(float(function([one], [answer])) for answer in answers)
            for one, answers in zip(predicted, wanted, strict=True)
        ]
    )
