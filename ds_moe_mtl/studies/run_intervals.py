"""How far the dev scores of one run might have been others on other dev rows."""

from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.evaluation.bootstrap import score_interval
from ds_moe_mtl.evaluation.predictions import read_predictions


def run_intervals(run: Path) -> dict[str, tuple[float, float]]:
    """Return the ends of each task's 95% interval in percent, by drawing dev rows again.

    Empty for a run that did not keep what its model gave for them; without a task whose metric is
    not made of rows.
    """
    try:
        found = read_predictions(run)
    except UserError:
        return {}
    ends = {name: score_interval(predictions) for name, predictions in found.items()}
    return {name: (each["low"], each["high"]) for name, each in ends.items() if each is not None}
