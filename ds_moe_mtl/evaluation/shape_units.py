"""Units of tasks whose answer is more than one class: what their scores are made of, a row each.

N rows, L labels.
"""

import json

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.tasks.shape_metrics import answer_scores, entity_counts, given_labels, score_labels

_MOST_BITS = 61
"""Labels that a whole number of 64 bits has room for, with the bit above them."""


def shape_units(task: TaskPredictions) -> tuple[str, np.ndarray, np.ndarray]:
    """Return (metric, truth, answer) of a multilabel, tags or answer task, as DevUnits has them.

    Raises UserError for a metric that is not made of rows.
    """
    if task.kind == "multilabel":
        return _of_labels(task)
    if task.kind == "answer":
        wanted = [json.loads(text) for text in task.labels.tolist()]
        scores = answer_scores(task.metric, task.outputs.tolist(), wanted)
        return "mean", np.zeros(len(scores)), scores
    rows = [[tags.split() for tags in texts.tolist()] for texts in (task.outputs, task.labels)]
    if task.metric == "entity_f1":
        right_N, given_N, there_N = entity_counts(*rows).T
        return "ratio", given_N + there_N, 2 * right_N
    if task.metric == "accuracy":
        pairs = [list(zip(*row, strict=True)) for row in zip(*rows, strict=True)]
        right = np.array([sum(one == other for one, other in row) for row in pairs])
        return "ratio", np.array(list(map(len, pairs))), right
    raise UserError(
        f"metric {task.metric!r} of tags cannot be drawn again by rows; allowed: entity_f1, "
        "accuracy"
    )


def _of_labels(task: TaskPredictions) -> tuple[str, np.ndarray, np.ndarray]:
    outputs_NL, truth_NL = task.outputs, task.labels > 0
    given_NL = given_labels(outputs_NL, task.thresholds)
    if task.metric == "micro_f1":
        return "ratio", truth_NL.sum(1) + given_NL.sum(1), 2 * (truth_NL & given_NL).sum(1)
    if task.metric == "subset_accuracy":
        right_N = (truth_NL == given_NL).all(axis=1)
        return "mean", np.zeros(len(right_N)), right_N.astype(float)
    if task.metric == "lrap":
        rows = zip(outputs_NL, truth_NL, strict=True)
        scores = [score_labels("lrap", x_L[None], t_L[None], task.thresholds) for x_L, t_L in rows]
        return "mean", np.zeros(len(scores)), np.array(scores)
    if len(task.classes) > _MOST_BITS:
        raise UserError(
            f"macro_f1 of {len(task.classes)} labels cannot be drawn again; allowed: at most "
            f"{_MOST_BITS} labels, or micro_f1, lrap, subset_accuracy"
        )
    bits_L = 1 << np.arange(len(task.classes), dtype=np.int64)
    above = 1 << len(task.classes)  # says how many labels there are
    return "label_macro_f1", truth_NL @ bits_L + above, given_NL @ bits_L
