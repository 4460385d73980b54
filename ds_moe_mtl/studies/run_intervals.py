"""How far the dev scores of one run might have been others on other dev rows."""

from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.predictions import read_predictions
from ds_moe_mtl.studies.bootstrap import DRAWS, drawn_scores, interval
from ds_moe_mtl.studies.units import units_of


def run_intervals(run: Path, draws: int = DRAWS) -> dict[str, tuple[float, float]]:
    """Return the ends of each task's 95% interval in percent, by drawing dev rows again.

    Empty for a run that did not keep what its model gave for them.
    """
    try:
        found = read_predictions(run)
    except UserError:
        return {}
    ends = {}
    for name, predictions in found.items():
        generator = np.random.default_rng(0)
        units = units_of(predictions)
        drawn_BS = drawn_scores([[units]], draws, generator)[0]
        of_task = interval(drawn_BS.mean(axis=0), drawn_BS, generator)
        ends[name] = (of_task.low, of_task.high)
    return ends
