"""What an export is made of: a trained model, and the dev rows that it is compared on."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import read_json
from ds_moe_mtl.data import EncodedSplit, encode_task
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.description import model_folder


@dataclass
class ExportSource:
    """A model in memory, where it is from, and its dev rows by task.

    run: the folder of its run, None where it has none. no_data: why a task's dev rows cannot be
    had, by task.
    """

    model: MultiTaskModel
    name: str
    data_root: str | None
    limit: int | None = None
    run: Path | None = None
    no_data: dict[str, str] = field(default_factory=dict)
    _splits: dict[str, EncodedSplit] = field(default_factory=dict)
    _outputs: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def results(self) -> Mapping | None:
        """results.json of its run, None where there is none."""
        return None if self.run is None else read_json(self.run / "results.json")

    def dev(self, task: str) -> EncodedSplit | None:
        """Return a task's dev rows as tokens, or None where they cannot be had (`no_data`)."""
        if task not in self._splits and task not in self.no_data:
            spec = self.model.task(task)
            try:
                self._splits[task] = encode_task(
                    spec, "dev", self.model.tokenizer, self.data_root, limit=self.limit
                )
            except UserError as error:
                self.no_data[task] = str(error)
        return self._splits.get(task)

    def outputs(self, task: str) -> np.ndarray:
        """Return the model's own outputs [N, C] on the dev rows of a task that has some."""
        if task not in self._outputs:
            self._outputs[task] = self.model.outputs(task, self._splits[task])
        return self._outputs[task]


def open_source(
    run: Path, checkpoint: str | None, data_root: str | None, limit: int | None, task: str | None
) -> ExportSource:
    """Return the source that a run's folder, a model's or a Hub id leads to.

    checkpoint: its name in the run, None for the finished model, and for the newest checkpoint
    where there is none. task: whose model it is in a run of single-task models. Raises UserError,
    one line, for what is no model.
    """
    of_run = next((at for at in (run, run.parent) if (at / "results.json").is_file()), None)
    parts = sorted(path.parents[1].name for path in run.glob("*/model/config.json"))
    if task in parts:
        run = run / task
    elif parts and model_folder(run) == run:
        raise UserError(f"{run} has a model a task; allowed: --task with {', '.join(parts)}")
    if checkpoint is None and (model_folder(run) != run or not (run / "checkpoints").is_dir()):
        model = MultiTaskModel.from_pretrained(run if run.is_dir() else str(run), "cpu")
        return ExportSource(model, run.name, data_root, limit, of_run)
    from ds_moe_mtl.engine.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # else DeepSpeed warns of its guess
    from ds_moe_mtl.export.model import choose_checkpoint, export_model

    found = choose_checkpoint(run, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        export_model(found, Path(folder) / "model")
        model = MultiTaskModel.from_pretrained(Path(folder) / "model", "cpu")
    return ExportSource(model, f"{run.name}/{found.name}", data_root, limit)
