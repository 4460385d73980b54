"""Answers with their probabilities, as the softmax (or, of several labels, the sigmoid) gives them.

N examples, C outputs, U units (words that have a piece, or tokens of a context).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.evaluation.shapes import best_part, predictions_of
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.shape_metrics import probabilities

WITHOUT = ("regression", "text")
"""Kinds whose outputs are no probabilities."""


def check_wish(spec: TaskSpec, return_probabilities: bool, top_k: int | None) -> None:
    """Raise UserError for probabilities of a task that has none, and for a top_k that is none."""
    if top_k is not None and (
        isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1
    ):
        raise UserError(f"top_k: {top_k!r}; allowed: a whole number above 0, or None")
    if (return_probabilities or top_k) and spec.kind in WITHOUT:
        raise UserError(f"{spec.name} is a {spec.kind} task, whose answers have no probabilities")
    if top_k and spec.kind == "answer":
        raise UserError(f"top_k: {spec.name} gives one answer; allowed: return_probabilities")


def probable_answers(
    spec: TaskSpec,
    outputs: np.ndarray,
    split: EncodedSplit,
    columns: Mapping[str, list],
    top_k: int | None,
) -> list[dict]:
    """Return {"label", "probability", "probabilities"} for each example.

    label: what `predict` answers without probabilities; of several labels their names alone.
    probability: that of the label; not of several labels and tags. probabilities: by class in the
    task's order, or of the top_k most probable ones in theirs. A ranking's say of each candidate by
    itself that it is right; tags have a dict a word, None for a word that the model has not seen;
    an answer in a context has its own alone, that of its first token times that of its last.
    """
    labels = predictions_of(spec, outputs, split, columns)
    if spec.kind == "multilabel":
        rows = [_named(spec.labels, p_L, top_k) for p_L in probabilities(outputs)]
        return [
            {"label": [name for name, _ in given], "probabilities": row}
            for given, row in zip(labels, rows, strict=True)
        ]
    if spec.kind == "tags":
        found = _of_words(spec, outputs, split, top_k)
        return [
            {"label": tags, "probabilities": rows} for tags, rows in zip(labels, found, strict=True)
        ]
    if spec.kind == "answer":
        found = answer_probabilities(spec, outputs, split)
        return [{"label": a, "probability": p} for a, p in zip(labels, found, strict=True)]
    rows = _by_class(spec, outputs, split, columns)
    return [
        {"label": label, "probability": row[label], "probabilities": _best(row, top_k)}
        for label, row in zip(labels, rows, strict=True)
    ]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, float64."""
    scores = scores.astype(np.float64)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _by_class(
    spec: TaskSpec, outputs_NC: np.ndarray, split: EncodedSplit, columns: Mapping[str, list]
) -> list[dict[str, float]]:
    if spec.kind == "options":
        found = []
        for number, options in enumerate(columns[spec.choices[0]]):
            row: dict[str, float] = {}
            shares = softmax(outputs_NC[split.questions == number, 0])
            for option, share in zip(options, shares.tolist(), strict=True):
                row[option] = row.get(option, 0.0) + share
            found.append(row)
        return found
    if spec.kind == "ranking":
        right_QC = softmax(outputs_NC[:, :2])[:, 1].reshape(-1, len(spec.choices))
        return [_named(spec.choices, right_C, None) for right_C in right_QC]
    return [_named(spec.labels, shares_C, None) for shares_C in softmax(outputs_NC)]


def _of_words(
    spec: TaskSpec, outputs_UC: np.ndarray, split: EncodedSplit, top_k: int | None
) -> list[list[dict[str, float] | None]]:
    shares_UC = softmax(outputs_UC) if len(outputs_UC) else outputs_UC
    found = []
    for row, words in enumerate(np.diff(split.word_offsets).tolist()):
        by_word: list[dict[str, float] | None] = [None] * words
        for unit in range(int(split.unit_offsets[row]), int(split.unit_offsets[row + 1])):
            by_word[split.unit_words[unit]] = _named(spec.labels, shares_UC[unit], top_k)
        found.append(by_word)
    return found


def answer_probabilities(
    spec: TaskSpec, outputs_U2: np.ndarray, split: EncodedSplit
) -> list[float]:
    """Return the probability of each row's answer; of a context without tokens 0."""
    found = []
    for row in range(split.num_sequences):
        units = slice(int(split.unit_offsets[row]), int(split.unit_offsets[row + 1]))
        if units.start == units.stop:
            found.append(0.0)
            continue
        firsts_U, lasts_U = softmax(outputs_U2[units].T)
        first, last = best_part(outputs_U2[units], spec.longest_answer)
        found.append(float(firsts_U[first] * lasts_U[last]))
    return found


def _named(names: Sequence[str], shares: np.ndarray, top_k: int | None) -> dict[str, float]:
    return _best(dict(zip(names, map(float, shares), strict=True)), top_k)


def _best(row: dict[str, float], top_k: int | None) -> dict[str, float]:
    if top_k is None:
        return row
    return dict(sorted(row.items(), key=lambda item: -item[1])[:top_k])
