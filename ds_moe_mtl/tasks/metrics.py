"""Scores of a task in percent, from the outputs of its head.

N sequences, C outputs of the head.
"""

import difflib
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from ds_moe_mtl.tasks.shape_metrics import ANSWER_METRICS, LABEL_METRICS, TAG_METRICS
from ds_moe_mtl.tasks.spec import TaskSpec
from ds_moe_mtl.tasks.text_metrics import TEXT_METRICS

LONGEST, MOST_LISTED = 60, 20
"""Characters of a name, and names, that a message has."""


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
    Raises ValueError for no sequences, for outputs or labels that are not finite, and for a metric
    that does not score the task's kind or its number of classes.
    """
    if len(outputs_NC) == 0:
        raise ValueError(f"task {spec.name!r}: nothing to score")
    if not np.isfinite(outputs_NC).all():
        raise ValueError(f"task {spec.name!r}: the model's outputs are not finite")
    if not np.isfinite(labels_N).all():
        raise ValueError(f"task {spec.name!r}: the labels are not finite")
    _check_metric(spec, outputs_NC, questions_N)
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


def metrics_of(kind: str) -> tuple[str, ...]:
    """The metrics that a user's task of this kind may name, its own first."""
    return _BY_KIND.get(kind, CLASS_METRICS)


def not_one_of(name: str, allowed: Sequence[str]) -> str:
    """In words that a name is none of these, with the nearest of them; long ones are cut."""
    listed = ", ".join(_cut(each) for each in allowed[:MOST_LISTED])
    if len(allowed) > MOST_LISTED:
        listed += f", ... ({len(allowed)} in all)"
    near = difflib.get_close_matches(name[:LONGEST], allowed, n=1, cutoff=0.5)
    nearest = f"; nearest: {_cut(near[0])}" if near else ""
    return f"is not one of {listed}{nearest}"


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def positive_class(spec: TaskSpec) -> str | None:
    """The class whose F1 the task's metric is; None for another metric."""
    if spec.metric not in TWO_CLASSES or len(spec.labels) != 2:
        return None
    return spec.labels[1]


def _check_metric(spec: TaskSpec, outputs_NC: np.ndarray, questions_N: np.ndarray) -> None:
    """Raise ValueError, one line, for a metric that cannot score the task."""
    metric = OPTION_METRICS.get(spec.metric, spec.metric) if spec.kind == "options" else spec.metric
    allowed = REGRESSION_METRICS if spec.kind == "regression" else (*CLASS_METRICS, "f1a")
    classes = outputs_NC.reshape(len(outputs_NC), -1).shape[1]
    if spec.kind == "options":
        classes = int(np.unique(questions_N, return_counts=True)[1].max())
    if metric in TWO_CLASSES and metric in allowed and classes > 2:
        others = ", ".join(name for name in allowed if name not in TWO_CLASSES)
        raise ValueError(
            f"task {spec.name!r}: metric {metric!r} scores two classes, and there are {classes}; "
            f"allowed: {others}"
        )
    if metric not in allowed:
        raise ValueError(
            f"task {spec.name!r}: metric {metric!r} does not score a {spec.kind}; allowed: "
            f"{', '.join(allowed)}"
        )


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


def _qwk(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights; classes are as far apart as their numbers.

    Scores, which have to be whole, are predicted as the nearest whole number in their range.
    """
    from sklearn.metrics import cohen_kappa_score

    if predicted.dtype.kind == "f":
        labels, predicted = whole_scores(labels, predicted)
    classes = np.arange(min(labels.min(), predicted.min()), max(labels.max(), predicted.max()) + 1)
    if len(np.union1d(labels, predicted)) == 1:
        return 0.0
    return cohen_kappa_score(labels, predicted, labels=classes, weights="quadratic")


def whole_scores(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers, int64, from a regression's labels and outputs. Raises ValueError for others.

    An output beyond the labels is the label at that end.
    """
    if (labels != np.round(labels)).any():
        raise ValueError("metric 'qwk' scores whole numbers, and some labels are none")
    inside = np.clip(np.round(predicted.astype(np.float64)), labels.min(), labels.max())
    return labels.astype(np.int64), inside.astype(np.int64)


def _r2(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the labels' variance that is explained; below 0 where their mean is better."""
    from sklearn.metrics import r2_score

    if len(labels) < 2 or np.ptp(labels) == 0:
        return 0.0
    return r2_score(labels.astype(np.float64), predicted.astype(np.float64))


def _spearman(labels: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predicted)


def _pearson(labels: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predicted)


def _correlation(function: Callable, labels: np.ndarray, predicted: np.ndarray) -> float:
    # In float32 large or nearly equal numbers lose the correlation.
    labels, predicted = labels.astype(np.float64), predicted.astype(np.float64)
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(function(labels, predicted).statistic)


OPTION_METRICS = {"exact_match": "accuracy"}
"""The answer is one of the options, so it matches exactly or it is another."""

CLASS_METRICS = ("accuracy", "matthews", "f1", "macro_f1", "qwk")
REGRESSION_METRICS = ("spearman", "pearson", "r2", "qwk")
_BY_KIND = {
    "regression": REGRESSION_METRICS,
    "options": tuple(name for name in CLASS_METRICS if name != "qwk"),
    "text": tuple(TEXT_METRICS),
    "multilabel": LABEL_METRICS,
    "tags": TAG_METRICS,
    "answer": ANSWER_METRICS,
}
TWO_CLASSES = ("f1", "f1a")
"""Metrics of one class against the other: the second of a task's labels is the positive one."""

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "matthews": _matthews,
    "f1": _f1,
    "f1a": _f1,
    "macro_f1": _macro_f1,
    "spearman": _spearman,
    "pearson": _pearson,
    "qwk": _qwk,
    "r2": _r2,
}

OWN_KINDS = (
    *("classification", "regression", "options", "text"),
    *("multilabel", "tags", "answer"),
)
"""Kinds that a user's task can be of."""

METRIC_NOTES = {
    "accuracy": "share of right answers (of classes, choices, options; of text: without case)",
    "matthews": "Matthews' correlation coefficient of the classes",
    "f1": "F1 of the second of two classes, which the data line and the results name",
    "f1a": "f1 over all answer options of MultiRC; of that task",
    "macro_f1": "the mean over classes, labels or tags of their F1",
    "micro_f1": "F1 of all labels of all examples together",
    "lrap": "label ranking average precision: of the labels ranked down to a right one, how many",
    "subset_accuracy": "share of examples whose labels are all right",
    "entity_f1": "F1 of entities with the right words and type (conlleval's)",
    "qwk": "quadratic weighted kappa of classes in their order, or of whole scores",
    "r2": "share of the scores' variance that is explained",
    "spearman": "Spearman's rank correlation of scores",
    "pearson": "Pearson's correlation of scores, or of generated numbers",
    "exact_match": "share of answers that are the same without case, punctuation and articles",
    "word_f1": "mean F1 of the words of answers (SQuAD's)",
    "rouge_l": "mean ROUGE-L of generated answers",
}
"""What each metric is; all are printed in percent."""
