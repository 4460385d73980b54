"""TensorBoard: scalars, hparams, a picture and histograms of routes, in the run's folder."""

from collections.abc import Mapping

import numpy as np

from ds_moe_mtl.tracking.tracker import Followed


class TensorBoard:
    """Writes <run>/tensorboard; steps that a run which died wrote beyond its checkpoint go."""

    id = None

    def __init__(self, run: Followed) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = str(run.folder / "tensorboard")
        self._board = SummaryWriter(folder, purge_step=run.first_step + 1)
        scores = {_tag(f"dev/{task}"): 0.0 for task in run.tasks}
        experiment, start, self._end = hparams(dict(run.hparams), scores)
        if run.first_step == 0:
            for summary in (experiment, start):
                self._board.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add each value under its key."""
        for key, value in values.items():
            self._board.add_scalar(_tag(key), value, step)

    def routes(self, step: int, picture_HWC: np.ndarray, shares: Mapping[str, np.ndarray]) -> None:
        """Add the picture, and each task's shares of all layers' experts as a histogram."""
        self._board.add_image("routes", picture_HWC, step, dataformats="HWC")
        for task, shares_LE in shares.items():
            self._board.add_histogram(_tag(f"routes/{task}"), shares_LE.ravel(), step)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Say that the run whose hparams stand here is complete."""
        self._board.file_writer.add_summary(self._end)

    def close(self) -> None:
        """Flush."""
        self._board.close()


def _tag(key: str) -> str:
    """Return a key as TensorBoard keeps it: it makes "a_b" of "a+b"; no task has a dot."""
    return key.replace("+", ".")
