"""All that is told of a task's score on labelled rows, as plain values for JSON and for tables."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.data.answer_spans import FIRST, LAST
from ds_moe_mtl.evaluation.answers import Answers, Confusion, read_answers
from ds_moe_mtl.evaluation.bootstrap import score_interval
from ds_moe_mtl.evaluation.calibration import calibration, confidences
from ds_moe_mtl.evaluation.outputs import task_result
from ds_moe_mtl.evaluation.predictions import task_predictions
from ds_moe_mtl.tasks import TaskSpec


def task_report(
    spec: TaskSpec,
    split: EncodedSplit,
    outputs: np.ndarray,
    tokenizer,
    columns: Mapping[str, list],
    places: list,
    worst: int,
) -> dict:
    """Return what `task_result` does, and how sure, how well calibrated and where it is wrong.

    "interval": of the score over its rows (None of a metric that is not made of rows). "classes":
    precision, recall and F1 in percent, and rows, of each class, label or entity type. "confusion":
    {"classes", "counts": by right class, then given class, "mistakes"}. "calibration": see there.
    "cost", "mean_cost", "worst": what an example's cost is, its mean, and the `worst` examples with
    the highest: {"row": its place, "texts", "right", "given", "cost"}.

    columns: the rows that the split was made of, places: what to call each.
    """
    result = task_result(spec, outputs, split, tokenizer)
    predictions = task_predictions(spec, split, outputs, tokenizer)
    answers = _with_losses(read_answers(predictions, spec), spec, outputs, split)
    shares = confidences(spec, outputs, split)
    return {
        **result,
        "interval": score_interval(predictions),
        "classes": answers.by_class(),
        "confusion": None if answers.confusion is None else _confusion(answers.confusion),
        "calibration": None if shares is None else calibration(shares),
        "cost": answers.cost,
        "mean_cost": float(answers.losses_U.mean()),
        "worst": [
            {
                "row": places[number],
                "texts": {name: columns[name][number] for name in spec.inputs},
                "right": answers.right[number],
                "given": answers.given[number],
                "cost": float(answers.losses_U[number]),
            }
            for number in answers.worst(worst)
        ],
    }


def _confusion(found: Confusion) -> dict:
    mistakes = [
        {"right": right, "given": given, "examples": count}
        for right, given, count in found.mistakes()
    ]
    return {
        "classes": list(found.classes),
        "counts": found.counts_KK.tolist(),
        "mistakes": mistakes,
    }


def _with_losses(
    answers: Answers, spec: TaskSpec, outputs: np.ndarray, split: EncodedSplit
) -> Answers:
    """Return answers that cost what training would count, where predictions lack the logits."""
    if spec.kind == "tags" and len(outputs):
        loss_U = _cross_entropy(outputs, split.unit_labels.astype(np.int64))
        losses_N = np.array([part.mean() if len(part) else 0.0 for part in _rows(loss_U, split)])
        return replace(answers, cost="mean cross-entropy of the words", losses_U=losses_N)
    if spec.kind == "answer" and len(outputs):
        losses = []
        parts = zip(_rows(outputs, split), _rows(split.unit_labels, split), strict=True)
        for scores_T2, marks_T in parts:
            ends = [np.flatnonzero(marks_T & bit) for bit in (FIRST, LAST)]
            # An answer that was cut off has no tokens that could be right: it cannot cost more.
            losses.append(
                sum(
                    _cross_entropy(scores_T2[None, :, side], place[:1])[0]
                    for side, place in enumerate(ends)
                )
                if len(ends[0])
                else np.inf
            )
        finite = [loss for loss in losses if np.isfinite(loss)]
        known = np.where(np.isfinite(losses), losses, max(finite, default=0.0))
        return replace(answers, cost="cross-entropy of first and last token", losses_U=known)
    return answers


def _rows(values: np.ndarray, split: EncodedSplit) -> list[np.ndarray]:
    return np.split(values, split.unit_offsets[1:-1])


def _cross_entropy(scores_NC: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    scores_NC = scores_NC.astype(np.float64)
    total_N = np.logaddexp.reduce(scores_NC, axis=1)
    return total_N - scores_NC[np.arange(len(scores_NC)), truth_N]
