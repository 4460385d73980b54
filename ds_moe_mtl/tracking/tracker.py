"""Where a run's course is followed beside metrics.jsonl: the trackers that `track` names.

An adapter is a file of this folder. One that fails while the run trains is told of once and left
out: no training ends for a page that shows it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Protocol

import numpy as np

from ds_moe_mtl.config import RankError, UserError
from ds_moe_mtl.config.files import read_json, write_json

IDS = "trackers.json"
"""In a run's folder: what each tracker calls the run, which is the same there when continued."""

PROJECT = "ds_moe_mtl"
"""What trackers call the project, where their own variables (WANDB_PROJECT, ...) do not say."""

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
_PACKAGES |= {"mlflow": "mlflow"}
_ADAPTERS = {
    "tensorboard": ("tensorboard", "TensorBoard"),
    "wandb": ("wandb_api", "WandbApi"),
    "trackio": ("wandb_api", "WandbApi"),
    "mlflow": ("mlflow_client", "MlflowRun"),
}


@dataclass(frozen=True)
class Followed:
    """What a tracker is told of a run at its start.

    hparams: the configuration by dotted key, plain values. first_step: steps that are done. id:
    what the tracker called the run when it was started; None: it is new there.
    """

    folder: Path
    hparams: Mapping[str, str | int | float | bool]
    tasks: tuple[str, ...]
    first_step: int
    tracker: str = ""
    id: str | None = None

    @property
    def name(self) -> str:
        """What the run is called: by the last part of its folder."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """What an adapter does with a run; each call may raise whatever its package raises."""

    id: str | None
    """What it calls the run, to be found again; None where the folder is enough."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take a row of metrics.jsonl."""

    def routes(self, step: int, picture_HWC: np.ndarray, shares: Mapping[str, np.ndarray]) -> None:
        """Take an evaluation's routes: uint8 picture, and by task each expert's share [L, E]."""

    def finish(self, scores: Mapping[str, float]) -> None:
        """Take the last scores of a complete run, by "dev/<task>"."""

    def close(self) -> None:
        """Write what is left; called once however the run ends."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError, one line, for trackers whose packages are not installed."""
    absent = [name for name in names if not _is_installed(_PACKAGES[name])]
    if absent:
        packages = " ".join(_PACKAGES[name] for name in absent)
        raise UserError(
            f"track: {', '.join(absent)}: not installed; allowed: pip install {packages}, or "
            f"track=[{','.join(name for name in names if name not in absent)}]"
        )


class Trackers:
    """The trackers of a run, on rank 0: each call goes to all that still work."""

    def __init__(self, names: Sequence[str], run: Followed, say: Callable[[str], None]) -> None:
        """Open them. Raises RankError, one line, where one cannot be opened for a new run."""
        self._say, self._open = say, {}
        ids = read_json(run.folder / IDS) or {}
        for name in names:
            own = Followed(run.folder, run.hparams, run.tasks, run.first_step, name, ids.get(name))
            try:
                self._open[name] = _adapter(name)(own)
            except Exception as error:  # whatever a package raises: no key, no server, no room
                if run.first_step == 0:
                    raise RankError(f"track: {name} cannot be opened: {_reason(error)}") from error
                self._failed(name, error)
        ids |= {name: each.id for name, each in self._open.items() if each.id is not None}
        if ids:
            write_json(run.folder / IDS, ids)

    @property
    def are_open(self) -> bool:
        """Whether there is anyone to show something to."""
        return bool(self._open)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Give all of them a row; its values are finite."""
        self._tell("scalars", step, values)

    def routes(self, step: int, picture_HWC: np.ndarray, shares: Mapping[str, np.ndarray]) -> None:
        """Give all of them an evaluation's routes."""
        self._tell("routes", step, picture_HWC, shares)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Give all of them a complete run's last scores."""
        self._tell("finish", scores)

    def close(self) -> None:
        """Close all of them."""
        self._tell("close")
        self._open.clear()

    def _tell(self, what: str, *values: object) -> None:
        for name, tracker in list(self._open.items()):
            try:
                getattr(tracker, what)(*values)
            except Exception as error:  # whatever a package raises: the training goes on
                del self._open[name]
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self._say(f"note: {name} has failed, the run goes on without it: {_reason(error)}")


def _adapter(name: str) -> type[Tracker]:
    module, kind = _ADAPTERS[name]
    return getattr(import_module(f"ds_moe_mtl.tracking.{module}"), kind)


def _is_installed(package: str) -> bool:
    """Return whether a package can be imported; a folder of data of its name is none."""
    spec = util.find_spec(package)
    return spec is not None and spec.origin is not None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]:.160}" if lines else type(error).__name__
