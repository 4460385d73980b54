"""Dev rows and runs made up for tests of what is computed from them."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ds_moe_mtl.evaluation.bootstrap import weighted_score
from ds_moe_mtl.evaluation.units import DevUnits
from ds_moe_mtl.studies.compare import ScoredRun


def make_units(
    truth: Sequence, answer: Sequence, metric: str = "accuracy", ids: Sequence[int] | None = None
) -> DevUnits:
    """Return units of one dev split; ids: which rows they are."""
    ids = np.arange(len(truth)) if ids is None else np.asarray(ids)
    sha256 = hashlib.sha256(ids.tobytes() + np.asarray(truth).tobytes()).hexdigest()[:16]
    parts = np.zeros(len(truth), np.int8)
    return DevUnits(metric, np.asarray(truth), np.asarray(answer), parts, ids, sha256)


def make_run(
    seed: int, units: Mapping[str, DevUnits], encoder: str = "e", steps: int = 10
) -> ScoredRun:
    """Return a run whose values are what its units come to."""
    values = {
        name: 100 * float(weighted_score(task, np.ones((1, len(task.truth_U))))[0])
        for name, task in units.items()
    }
    metrics = {name: task.metric for name, task in units.items()}
    return ScoredRun(f"run of seed {seed}", seed, encoder, steps, metrics, values, units)
