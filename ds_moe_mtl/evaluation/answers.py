"""What a model answered on a task's rows, by kind of task: right, wrong, and how costly.

To read another kind of task, write a function from its predictions to Answers and name it in
READERS; `report` and `evaluate` show what is there.

N sequences, C outputs of a head, U examples (a question with several sequences is one), K classes.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.metrics import answered_places
from ds_moe_mtl.tasks.shape_metrics import (
    OUTSIDE,
    answer_scores,
    entity_counts,
    given_labels,
    is_bio,
)
from ds_moe_mtl.tasks.text_metrics import TEXT_METRICS, score_text

MOST_CLASSES = 30
"""Classes that a confusion matrix is drawn for; of more the commonest mistakes are listed."""


@dataclass(frozen=True)
class Confusion:
    """counts_KK: examples by right class (rows) and answered class (columns)."""

    classes: tuple[str, ...]
    counts_KK: np.ndarray

    def by_class(self) -> list[dict]:
        """Return precision, recall and F1 in percent of each class, None where undefined."""
        right_K = np.diag(self.counts_KK)
        truth_K, answer_K = self.counts_KK.sum(axis=1), self.counts_KK.sum(axis=0)
        return _class_scores(self.classes, right_K, truth_K, answer_K)

    def mistakes(self, most: int = 12) -> list[tuple[str, str, int]]:
        """Return (right class, answered class, examples) of the commonest mistakes."""
        off_KK = self.counts_KK - np.diag(np.diag(self.counts_KK))
        order = np.argsort(-off_KK, axis=None, kind="stable")[:most]
        pairs = [np.unravel_index(place, off_KK.shape) for place in order]
        return [
            (self.classes[r], self.classes[a], int(off_KK[r, a])) for r, a in pairs if off_KK[r, a]
        ]


@dataclass(frozen=True)
class Answers:
    """One task's dev examples. losses_U: natural units; cost: what they are, in words.

    right and given: as texts. confusion: of classes. numbers: (right, given) of a regression.
    parts: scores of what an example has several of (labels, entities), as Confusion.by_class gives.
    """

    cost: str
    losses_U: np.ndarray
    right: tuple[str, ...]
    given: tuple[str, ...]
    confusion: Confusion | None = None
    numbers: tuple[np.ndarray, np.ndarray] | None = None
    parts: tuple[dict, ...] = ()

    def by_class(self) -> list[dict]:
        """Return the scores of each label, entity type or class; [] of a kind without."""
        if self.parts or self.confusion is None:
            return list(self.parts)
        return self.confusion.by_class()

    def worst(self, most: int) -> list[int]:
        """Return the numbers of the examples with the largest losses, those of no loss left out."""
        order = np.argsort(-self.losses_U, kind="stable")[:most]
        return [int(example) for example in order if self.losses_U[example] > 0]


def read_answers(task: TaskPredictions, spec: TaskSpec | None) -> Answers | None:
    """Return a task's answers, None for a kind that READERS does not know."""
    reader = READERS.get(task.kind)
    return None if reader is None else reader(task, spec)


def _classes(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    log_NC = task.outputs.astype(np.float64)
    log_NC -= np.log(np.exp(log_NC).sum(axis=1, keepdims=True))
    truth_N, answer_N = task.labels.astype(np.int64), task.outputs.argmax(axis=1)
    names = task.classes or tuple(map(str, range(log_NC.shape[1])))
    share_N = np.exp(log_NC[np.arange(len(log_NC)), answer_N])
    return Answers(
        "cross-entropy",
        -log_NC[np.arange(len(log_NC)), truth_N],
        tuple(names[k] for k in truth_N),
        tuple(f"{names[k]} ({100 * p:.0f}%)" for k, p in zip(answer_N, share_N, strict=True)),
        _counted(names, truth_N, answer_N),
    )


def _numbers(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    right_N = task.labels.astype(np.float64)
    given_N = task.outputs.reshape(-1).astype(np.float64)
    return Answers(
        "squared error",
        (right_N - given_N) ** 2,
        tuple(f"{value:.4g}" for value in right_N),
        tuple(f"{value:.4g}" for value in given_N),
        numbers=(right_N, given_N),
    )


def _ranking(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    """Each choice was asked for truth by itself; the one with the largest "true" logit is given."""
    log_NC = task.outputs.astype(np.float64)
    log_NC -= np.logaddexp.reduce(log_NC, axis=1, keepdims=True)
    loss_N = -log_NC[np.arange(len(log_NC)), task.labels.astype(np.int64)]
    counts_U = np.bincount(task.questions)
    losses_U = np.bincount(task.questions, weights=loss_N) / counts_U
    right_U, given_U = answered_places(task.outputs[:, 1:], task.labels, task.questions)
    names = spec.choices if spec is not None else _places(counts_U.max())
    texts = _named(names, right_U, given_U)
    confusion = _counted(names, right_U, given_U)
    return Answers("mean cross-entropy of the choices", losses_U, *texts, confusion)


def _options(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    scores_N = task.outputs[:, 0].astype(np.float64)
    counts_U = np.bincount(task.questions)
    starts_U = np.cumsum(counts_U) - counts_U
    shifted_N = scores_N - np.maximum.reduceat(scores_N, starts_U)[task.questions]
    sums_U = np.bincount(task.questions, weights=np.exp(shifted_N))
    right_U, given_U = answered_places(task.outputs, task.labels, task.questions)
    losses_U = np.log(sums_U) - shifted_N[starts_U + right_U]
    names = _places(counts_U.max())
    return Answers("cross-entropy of the options", losses_U, *_named(names, right_U, given_U))


def _texts(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    """Generated answers have no loss here: an example costs what its own score lacks of 100%."""
    right, given = (tuple(text.strip() for text in texts) for texts in (task.labels, task.outputs))
    each = task.metric if task.metric in _SCORED_ALONE else "exact_match"
    scores_U = [score_text(each, [one], [other]) for one, other in zip(given, right, strict=True)]
    names = tuple(name for name, _ in Counter(right).most_common())
    confusion = None
    if len(names) <= MOST_CLASSES and len(names) < len(right):
        place = {name: number for number, name in enumerate((*names, "(other text)"))}
        counts_KK = np.zeros((len(place), len(place)), dtype=np.int64)
        for one, other in zip(right, given, strict=True):
            counts_KK[place[one], place.get(other, len(names))] += 1
        confusion = Confusion(tuple(place), counts_KK)
    return Answers(
        f"what its {each.replace('_', ' ')} lacks of 1",
        1 - np.array(scores_U) / 100,
        right,
        given,
        confusion,
    )


def _labels(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    """Any number of labels: the loss is the mean over them."""
    logits_NL, truth_NL = task.outputs.astype(np.float64), task.labels > 0
    given_NL = given_labels(task.outputs, task.thresholds)
    losses_NL = np.logaddexp(0, np.where(truth_NL, -logits_NL, logits_NL))
    counts = ((truth_NL & given_NL).sum(0), truth_NL.sum(0), given_NL.sum(0))
    return Answers(
        "mean cross-entropy of the labels",
        losses_NL.mean(axis=1),
        _some_of(task.classes, truth_NL),
        _some_of(task.classes, given_NL),
        parts=tuple(_class_scores(task.classes, *counts)),
    )


def _tags(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    """Tags of words; parts are entities where the tags mark them."""
    right, given = (tuple(texts.tolist()) for texts in (task.labels, task.outputs))
    words = [[text.split() for text in texts] for texts in (right, given)]
    place = {name: number for number, name in enumerate(task.classes)}
    flat = [np.array([place[tag] for tags in rows for tag in tags]) for rows in words]
    wrong = [sum(a != b for a, b in zip(*row, strict=True)) for row in zip(*words, strict=True)]
    parts: tuple[dict, ...] = ()
    if is_bio(task.classes):
        types = sorted({tag[2:] for tag in task.classes if tag != OUTSIDE})
        counts = [entity_counts(*words[::-1], kind).sum(axis=0) for kind in types]
        right_K, given_K, there_K = np.array(counts).T
        parts = tuple(_class_scores(types, right_K, there_K, given_K))
    return Answers(
        "words with another tag",
        np.array(wrong, dtype=np.float64),
        right,
        given,
        _counted(task.classes, *flat),
        parts=parts,
    )


def _found(task: TaskPredictions, spec: TaskSpec | None) -> Answers:
    """Parts of a context: an example costs what its word F1 lacks of 1."""
    wanted = [json.loads(text) for text in task.labels.tolist()]
    given = tuple(task.outputs.tolist())
    scores_N = answer_scores("word_f1", given, wanted)
    right = tuple(" / ".join(dict.fromkeys(answers)) for answers in wanted)
    return Answers("what its word F1 lacks of 1", 1 - scores_N, right, given)


_SCORED_ALONE = tuple(set(TEXT_METRICS) - {"macro_f1", "matthews", "pearson"})

READERS: dict[str, Callable[[TaskPredictions, TaskSpec | None], Answers]] = {
    "classification": _classes,
    "span": _classes,
    "regression": _numbers,
    "ranking": _ranking,
    "options": _options,
    "text": _texts,
    "multilabel": _labels,
    "tags": _tags,
    "answer": _found,
}
"""From a kind of task to what is shown of its rows."""


def _named(names, right_U: np.ndarray, given_U: np.ndarray) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(names[place] for place in places) for places in (right_U, given_U))


def _counted(names: Sequence[str], right_U: np.ndarray, given_U: np.ndarray) -> Confusion:
    counts_KK = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts_KK, (right_U, given_U), 1)
    return Confusion(tuple(names), counts_KK)


def _class_scores(names: Sequence[str], right_K, truth_K, answer_K) -> list[dict]:
    return [
        {
            "name": name,
            "rows": int(truth),
            "precision": _percent(right, answer),
            "recall": _percent(right, truth),
            "f1": _percent(2 * right, truth + answer),
        }
        for name, right, truth, answer in zip(names, right_K, truth_K, answer_K, strict=True)
    ]


def _some_of(names: Sequence[str], which_NL: np.ndarray) -> tuple[str, ...]:
    return tuple(
        ", ".join(names[i] for i in np.flatnonzero(which_L)) or "(none)" for which_L in which_NL
    )


def _places(count: int) -> tuple[str, ...]:
    return tuple(f"option {place + 1}" for place in range(count))


def _percent(part: float, whole: float) -> float | None:
    return 100 * float(part) / float(whole) if whole else None
