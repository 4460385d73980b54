"""Weights & Biases, and trackio, which has its interface: one adapter, by whichever is named.

Their own variables say where a run goes: WANDB_PROJECT, WANDB_MODE=offline, TRACKIO_DIR, ...
"""

import inspect
import os
import uuid
from collections.abc import Mapping
from importlib import import_module

import numpy as np

from ds_moe_mtl.tracking.tracker import PROJECT, Followed


class WandbApi:
    """A run of the package that `run.tracker` names.

    W&B finds a run again by its id, trackio by its name: both get the same word, which is kept.
    """

    def __init__(self, run: Followed) -> None:
        self._package = import_module(run.tracker)
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:8]}"
        asked = {
            "project": os.environ.get(f"{run.tracker.upper()}_PROJECT", PROJECT),
            "id": self.id,
            "name": run.name,
            "config": dict(run.hparams),
            "dir": str(run.folder),
            "resume": "allow",
        }
        takes = inspect.signature(self._package.init).parameters
        if "id" not in takes:
            asked["name"] = self.id
        self._run = self._package.init(**{k: v for k, v in asked.items() if k in takes})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values at their step."""
        self._run.log(dict(values), step=step)

    def routes(self, step: int, picture_HWC: np.ndarray, shares: Mapping[str, np.ndarray]) -> None:
        """Log the picture, and each task's shares of all layers' experts as a histogram."""
        package = self._package
        values = {"routes": package.Image(picture_HWC)}
        if hasattr(package, "Histogram"):
            values |= {
                f"routes/{task}": package.Histogram(shares_LE.ravel().tolist())
                for task, shares_LE in shares.items()
            }
        self._run.log(values, step=step)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Put the last scores into the run's summary, where the package has one."""
        summary = getattr(self._run, "summary", None)
        if summary is not None:
            summary.update(dict(scores))

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
