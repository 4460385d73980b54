"""What is kept of a run's dev rows, scored as the run itself scored them."""

import numpy as np

from ds_moe_mtl.evaluation.predictions import TaskPredictions
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.metrics import score


def score_predictions(task: TaskPredictions) -> float:
    """Return the metric in percent, by the library's own scorer."""
    spec = TaskSpec("again", task.kind, ("text",), labels=task.classes, metric=task.metric)
    outputs = task.outputs.astype(np.float32)
    return score(spec, outputs, task.labels, task.questions, task.parts)
