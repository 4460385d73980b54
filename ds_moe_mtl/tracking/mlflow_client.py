"""MLflow by its client, which keeps no state of its own in the process.

MLFLOW_TRACKING_URI says where runs go, MLFLOW_EXPERIMENT_NAME in which experiment.
"""

import os
import time
from collections.abc import Mapping

import numpy as np

from ds_moe_mtl.tracking.tracker import PROJECT, Followed

_MOST_AT_ONCE = 100
"""Parameters of one call, MLflow's own bound; metrics may be ten times as many."""

_LONGEST = 500
"""Characters of a parameter's value, the bound of older servers."""


class MlflowRun:
    """A run of an MLflow experiment."""

    def __init__(self, run: Followed) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        self._ended = "KILLED"
        if run.id is not None:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(_key(key), str(value)[:_LONGEST]) for key, value in run.hparams.items()]
        for first in range(0, len(params), _MOST_AT_ONCE):
            self._client.log_batch(self.id, params=params[first : first + _MOST_AT_ONCE])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values at their step."""
        now = int(1000 * time.time())
        metrics = [self._metric(_key(key), value, now, step) for key, value in values.items()]
        for first in range(0, len(metrics), _MOST_AT_ONCE):
            self._client.log_batch(self.id, metrics=metrics[first : first + _MOST_AT_ONCE])

    def routes(self, step: int, picture_HWC: np.ndarray, shares: Mapping[str, np.ndarray]) -> None:
        """Log the picture, and the shares as JSON: MLflow has no histograms."""
        self._client.log_image(self.id, picture_HWC, key="routes", step=step)
        values = {task: shares_LE.round(4).tolist() for task, shares_LE in shares.items()}
        self._client.log_dict(self.id, values, f"routes/step_{step:08d}.json")

    def finish(self, scores: Mapping[str, float]) -> None:
        """Call the run finished."""
        self._ended = "FINISHED"

    def close(self) -> None:
        """End the run: as finished, or as one that may be continued."""
        self._client.set_terminated(self.id, self._ended)


def _key(key: str) -> str:
    """Return a key as MLflow takes it: a folder of metrics has no room for loss beside loss/rte."""
    return "train_loss" if key == "loss" else key.replace("+", ".")
