"""Whether a model is right as often as its probabilities say.

N answers, each with its probability; B bins.
"""

from typing import NamedTuple

import numpy as np

from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.evaluation.probable import answer_probabilities, softmax
from ds_moe_mtl.evaluation.shapes import found_answers, gold_answers
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.metrics import answered_questions
from ds_moe_mtl.tasks.shape_metrics import answer_scores, probabilities

BINS = 15
"""Of equal width, from 0 to 1, as Guo et al. ("On Calibration of Modern Neural Networks", 2017)."""


class Confidences(NamedTuple):
    """Probabilities, and whether what each is of is right [N]. of: what it is, in words."""

    of: str
    share_N: np.ndarray
    right_N: np.ndarray


def confidences(spec: TaskSpec, outputs: np.ndarray, split: EncodedSplit) -> Confidences | None:
    """Return the probabilities of a task's answers; None of a kind without probabilities.

    That of the class that is given (of tags a word's, of a choice that it is right, of an answer
    in a context that it is exact); of several labels those of all labels, given or not.
    """
    if spec.kind in ("regression", "text") or not len(outputs):
        return None
    if spec.kind == "multilabel":
        shares_NL = probabilities(outputs)
        return Confidences("all labels", shares_NL.ravel(), split.label_sets.ravel() > 0)
    if spec.kind == "answer":
        answers = found_answers(spec, outputs, split)
        exact_N = answer_scores("exact_match", [a.text for a in answers], gold_answers(split)) == 1
        shares = answer_probabilities(spec, outputs, split)
        return Confidences("the answer", np.array(shares), exact_N)
    if spec.kind in ("ranking", "options"):
        return _of_choices(spec, outputs, split)
    shares_NC = softmax(outputs)
    truth_N = split.unit_labels if spec.kind == "tags" else split.labels
    right_N = outputs.argmax(axis=1) == truth_N.astype(np.int64)
    of = "the tag of a word" if spec.kind == "tags" else "the class that is given"
    return Confidences(of, shares_NC.max(axis=1), right_N)


def calibration(found: Confidences) -> dict:
    """Return {"of", "bins", "error"}: the expected calibration error in percent, and by bin.

    The error is the mean over answers of the distance, in the answer's bin, between the mean
    probability and the share that is right. A bin has its upper end. Bins without answers are left
    out.
    """
    place_N = np.clip(np.ceil(found.share_N * BINS).astype(int) - 1, 0, BINS - 1)
    count_B = np.bincount(place_N, minlength=BINS)
    share_B = np.bincount(place_N, weights=found.share_N, minlength=BINS)
    right_B = np.bincount(place_N, weights=found.right_N, minlength=BINS)
    bins = [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "count": int(count_B[place]),
            "probability": 100 * float(share_B[place] / count_B[place]),
            "right": 100 * float(right_B[place] / count_B[place]),
        }
        for place in np.flatnonzero(count_B).tolist()
    ]
    error = float(np.abs(share_B - right_B).sum() / len(found.share_N))
    return {"of": found.of, "error": 100 * error, "bins": bins}


def _of_choices(spec: TaskSpec, outputs: np.ndarray, split: EncodedSplit) -> Confidences:
    questions = split.questions
    starts = np.flatnonzero(np.diff(questions, prepend=-1))
    if spec.kind == "ranking":
        right_N = softmax(outputs[:, :2])[:, 1]
        right_Q = answered_questions(outputs, split.labels, questions) > 0
        return Confidences("the choice, by itself", np.maximum.reduceat(right_N, starts), right_Q)
    scores_N = outputs[:, 0].astype(np.float64)
    best_Q = np.maximum.reduceat(scores_N, starts)
    powers_N = np.exp(scores_N - best_Q[questions])
    shares_Q = 1 / np.add.reduceat(powers_N, starts)
    # Of equally good options the first one is given.
    firsts_N = np.where(scores_N == best_Q[questions], np.arange(len(scores_N)), len(scores_N))
    given_Q = np.minimum.reduceat(firsts_N, starts)
    return Confidences("the option", shares_Q, split.labels[given_Q] > 0)
