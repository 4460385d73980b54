"""Dev rows as the units that a score is made of, and that a bootstrap draws again.

A unit is a row, or a question where several rows answer one. For every kind of task it comes down
to what is right and what was answered, so that one small array per run is all that is kept.

U units.
"""

import base64
import zlib
from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.evaluation.shape_units import shape_units
from ds_moe_mtl.tasks.metrics import (
    OPTION_METRICS,
    answered_places,
    answered_questions,
    whole_scores,
)
from ds_moe_mtl.tasks.text_metrics import score_text

_SAME_SCORE = {"f1a": "f1", **OPTION_METRICS}


@dataclass(frozen=True)
class DevUnits:
    """One task's units. metric: accuracy, matthews, f1, macro_f1, qwk, spearman, pearson, r2, or
    mean, ratio, label_macro_f1.

    truth and answer: class numbers, or numbers; for Spearman the answers' ranks, which are all it
    reads; for mean the answer is the unit's own score and truth is 0; a ratio is the sum of the
    answers over the sum of the truths (F1 of several decisions a unit); for label_macro_f1 both
    have a bit for each label, and the truth one above them.
    """

    metric: str
    truth_U: np.ndarray
    answer_U: np.ndarray
    parts_U: np.ndarray  # the dev split a unit is from; a score is the mean over them
    ids_U: np.ndarray  # int64, the same for the same unit in another sample of the dev rows
    sha256: str  # of the dev rows


def units_of(task: TaskPredictions) -> DevUnits:
    """Return a task's predictions as units. Raises UserError where they are not made of rows."""
    metric = _SAME_SCORE.get(task.metric, task.metric)
    firsts = np.flatnonzero(np.diff(task.questions, prepend=-1))
    if task.kind == "ranking":
        right_U = answered_questions(task.outputs, task.labels, task.questions)
        truth_U, answer_U = np.ones(len(right_U), np.int64), right_U.astype(np.int64)
    elif task.kind == "options":
        truth_U, answer_U = answered_places(task.outputs, task.labels, task.questions)
    else:
        firsts = np.arange(len(task.labels))
        if task.kind == "text":
            metric, truth_U, answer_U = _text_units(task)
        elif task.kind in ("multilabel", "tags", "answer"):
            metric, truth_U, answer_U = shape_units(task)
        elif task.kind == "regression" and metric == "qwk":
            truth_U, answer_U = whole_scores(task.labels, task.outputs.reshape(-1))
        elif task.kind == "regression":
            truth_U, answer_U = task.labels, task.outputs.reshape(-1)
        elif task.kind in ("classification", "span"):
            truth_U, answer_U = task.labels.astype(np.int64), task.outputs.argmax(axis=1)
        else:
            raise UserError(f"rows of a {task.kind!r} task cannot be drawn again")
    if metric == "spearman":
        answer_U = np.unique(answer_U, return_inverse=True)[1]
    ids_U = _distinct(np.bitwise_xor.reduceat(task.rows, firsts))
    return DevUnits(metric, truth_U, answer_U, task.parts[firsts], ids_U, task.sha256)


def packed(values: np.ndarray) -> dict[str, str]:
    """Return an array as JSON values, in the fewest bits that hold it."""
    if values.dtype.kind in "iub":
        values = values.astype(
            np.result_type(*map(np.min_scalar_type, (values.min(), values.max())))
        )
    data = base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
    return {"type": values.dtype.str, "data": data}


def unpacked(stored: dict[str, str]) -> np.ndarray:
    """Return the array that `packed` wrote."""
    data = zlib.decompress(base64.b64decode(stored["data"]))
    return np.frombuffer(data, dtype=np.dtype(stored["type"]))


def _text_units(task: TaskPredictions) -> tuple[str, np.ndarray, np.ndarray]:
    """Return (metric, truth, answer) of generated answers; as `score_text` reads them."""
    answers, wanted = ([t.strip() for t in texts] for texts in (task.outputs, task.labels))
    if task.metric in ("macro_f1", "matthews"):
        numbers = np.unique([*wanted, *answers], return_inverse=True)[1]
        return task.metric, numbers[: len(wanted)], numbers[len(wanted) :]
    if task.metric == "pearson":
        found = np.array([_number(text) for text in answers])
        known = found[~np.isnan(found)]
        found[np.isnan(found)] = known.mean() if len(known) else 0.0
        return "pearson", np.array([float(text) for text in wanted]), found
    scores = [
        score_text(task.metric, [one], [other]) / 100
        for one, other in zip(answers, wanted, strict=True)
    ]
    return "mean", np.zeros(len(scores)), np.array(scores)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _distinct(sums_U: np.ndarray) -> np.ndarray:
    """Return checksums as ids; equal ones get a number in their order, so that each is one unit."""
    order = np.argsort(sums_U, kind="stable")
    ordered = sums_U[order]
    starts = np.flatnonzero(np.diff(ordered.astype(np.int64), prepend=-1))
    sizes = np.diff(np.append(starts, len(ordered)))
    ids_U = np.empty(len(sums_U), np.int64)
    ids_U[order] = ordered + ((np.arange(len(ordered)) - np.repeat(starts, sizes)) << 32)
    return ids_U
