"""Scores of generated answers in percent, as CrossFit computes them (dataloader/metrics.py).

Answers are normalised for exact match and word F1 as SQuAD's own script does: lower case, no
punctuation, no articles.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ds_moe_mtl.tasks.numbers import number

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_text(metric: str, predicted: Sequence[str], answers: Sequence[str]) -> float:
    """The metric of these answers in percent.

    Raises ValueError for none and for a metric that text has none of.
    """
    if not answers:
        raise ValueError("no answers to score")
    if metric not in TEXT_METRICS:
        raise ValueError(f"metric {metric!r}; allowed for text: {', '.join(TEXT_METRICS)}")
    predicted = [text.strip() for text in predicted]
    answers = [text.strip() for text in answers]
    return 100 * float(TEXT_METRICS[metric](predicted, answers))


def normalised(text: str) -> str:
    """An answer without case, punctuation, articles and double blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _exact_match(predicted: Sequence[str], answers: Sequence[str]) -> float:
    pairs = zip(predicted, answers, strict=True)
    return np.mean([normalised(one) == normalised(other) for one, other in pairs])


def _accuracy(predicted: Sequence[str], answers: Sequence[str]) -> float:
    pairs = zip(predicted, answers, strict=True)
    return np.mean([one.lower() == other.lower() for one, other in pairs])


def _word_f1(predicted: Sequence[str], answers: Sequence[str]) -> float:
    """The mean over answers of the F1 of their words, each as often as it occurs."""
    values = []
    for one, other in zip(predicted, answers, strict=True):
        words, wanted = normalised(one).split(), normalised(other).split()
        shared = sum((Counter(words) & Counter(wanted)).values())
        values.append(2 * shared / (len(words) + len(wanted)) if shared else 0.0)
    return np.mean(values)


def _rouge_l(predicted: Sequence[str], answers: Sequence[str]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(predicted, answers, strict=True)
    return np.mean([scorer.score(other, one)["rougeL"].fmeasure for one, other in pairs])


def _macro_f1(predicted: Sequence[str], answers: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    return f1_score(answers, predicted, average="macro", zero_division=0)


def _matthews(predicted: Sequence[str], answers: Sequence[str]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(answers, predicted)


def _pearson(predicted: Sequence[str], answers: Sequence[str]) -> float:
    """Pearson's correlation; a prediction that is no number counts as the mean of the others.

    What float32 cannot hold is no number. Raises ValueError for an answer that is none.
    """
    from scipy.stats import pearsonr

    wanted = [number(text) for text in answers]
    if None in wanted:
        place = wanted.index(None)
        raise ValueError(f"metric 'pearson': answer {place} is no number: {answers[place]!r:.40}")
    found = [number(text) for text in predicted]
    known = [value for value in found if value is not None]
    mean = float(np.mean(known)) if known else 0.0
    numbers = np.array([mean if value is None else value for value in found])
    if len(wanted) < 2 or np.ptp(numbers) == 0 or np.ptp(wanted) == 0:
        return 0.0
    return pearsonr(wanted, numbers).statistic


TEXT_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "exact_match": _exact_match,
    "accuracy": _accuracy,
    "word_f1": _word_f1,
    "rouge_l": _rouge_l,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
}
