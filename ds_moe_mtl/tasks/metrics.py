"""Scores of a task in percent, from the outputs of its head.

N sequences, C outputs of the head.
"""

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from ds_moe_mtl.tasks.spec import TaskSpec


def score(
    spec: TaskSpec,
    outputs_NC: np.ndarray,
    labels_N: np.ndarray,
    questions_N: np.ndarray,
    parts_N: np.ndarray,
) -> float:
    """The task's metric in percent; the plain mean over its dev splits (MNLI has two).

    outputs_NC: logits, or the score of a regression, of each encoded sequence in any order.
    labels_N: class numbers, scores, or 1 for the right choice of a ranking question.
    questions_N: the example a sequence belongs to. parts_N: the dev split it is from.
    A correlation that is undefined (constant outputs or labels) counts as 0.
    Raises ValueError for no sequences and for outputs that are not finite.
    """
    if len(outputs_NC) == 0:
        raise ValueError(f"task {spec.name!r}: nothing to score")
    if not np.isfinite(outputs_NC).all():
        raise ValueError(f"task {spec.name!r}: the model's outputs are not finite")
    values = []
    for part in np.unique(parts_N):
        rows = parts_N == part
        if spec.kind == "ranking":
            right = answered_questions(outputs_NC[rows], labels_N[rows], questions_N[rows])
            value = float(right.mean())
        elif spec.kind == "options":
            right, chosen = answered_places(outputs_NC[rows], labels_N[rows], questions_N[rows])
            value = METRICS[OPTION_METRICS.get(spec.metric, spec.metric)](right, chosen)
        elif spec.kind == "regression":
            value = METRICS[spec.metric](labels_N[rows], outputs_NC[rows].reshape(-1))
        else:
            value = METRICS[spec.metric](labels_N[rows].astype(int), outputs_NC[rows].argmax(1))
        values.append(100 * value)
    return float(np.mean(values))


def average_half_up(values: Sequence[float], digits: int) -> float:
    """The mean, rounded half up as the paper's tables are (79.465 gives 79.47)."""
    mean = sum(Decimal(str(value)) for value in values) / len(values)
    return float(mean.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def answered_questions(
    outputs_NC: np.ndarray, labels_N: np.ndarray, questions_N: np.ndarray
) -> np.ndarray:
    """1 for each question whose candidate with the largest "true" logit is right, else 0 (A.3.1).

    In the questions' order.
    """
    order = np.lexsort((-outputs_NC[:, 1], questions_N))
    _, firsts = np.unique(questions_N[order], return_index=True)
    return labels_N[order][firsts]


def answered_places(
    outputs_NC: np.ndarray, labels_N: np.ndarray, questions_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Place of the right and of the best scored option of each question, int [questions].

    Where a task's options are always the same, in the same order, places are its classes.
    """
    firsts = np.flatnonzero(np.diff(questions_N, prepend=-1))
    ends = np.append(firsts[1:], len(questions_N))
    pairs = [
        (labels_N[first:end].argmax(), outputs_NC[first:end, 0].argmax())
        for first, end in zip(firsts, ends, strict=True)
    ]
    right, chosen = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return right, chosen


def _accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, predicted)


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(labels, predicted)  # 0 where it is undefined


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1; over all answer options of MultiRC this is its F1a (A.3.1)."""
    from sklearn.metrics import f1_score

    return f1_score(labels, predicted, labels=[1], average="macro", zero_division=0)


def _macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predicted, average="macro", zero_division=0)


def _spearman(labels: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predicted)


def _pearson(labels: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predicted)


def _correlation(function: Callable, labels: np.ndarray, predicted: np.ndarray) -> float:
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(function(labels, predicted).statistic)


OPTION_METRICS = {"exact_match": "accuracy"}
"""The answer is one of the options, so it matches exactly or it is another."""

CLASS_METRICS = ("accuracy", "matthews", "f1", "macro_f1")
REGRESSION_METRICS = ("spearman", "pearson")
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "matthews": _matthews,
    "f1": _f1,
    "f1a": _f1,
    "macro_f1": _macro_f1,
    "spearman": _spearman,
    "pearson": _pearson,
}
