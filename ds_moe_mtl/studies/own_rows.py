"""The run that a model is from: where its data is, and whether the dev rows are still the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import RunConfig, load_config
from ds_moe_mtl.config.files import read_json
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.tasks import TaskSpec


@dataclass(frozen=True)
class OwnRun:
    """config: None where no run is beside the model. data: of results.json, by task, or None.

    root: where known tasks' sets are.
    """

    config: RunConfig | None
    data: Mapping[str, Mapping] | None
    root: str | None

    @classmethod
    def of(cls, folder: Path, root: str | None) -> "OwnRun":
        """Return the run whose folder (or model/ in it) this is. root: instead of the run's own."""
        for candidate in (folder, folder.parent):
            if (candidate / "config.yaml").is_file():
                config = load_config(candidate / "config.yaml", check_files=False)
                results = read_json(candidate / "results.json") or {}
                return cls(config, results.get("data"), root or config.data.root)
        return cls(None, None, root)

    @property
    def cache(self) -> str | None:
        """The folder of tokenised sets."""
        return None if self.config is None else self.config.data.cache

    def note(self, spec: TaskSpec, tokenizer, examples: int) -> str:
        """Return what a reader of a score on a task's dev rows must know, "" for nothing.

        examples: that were scored. The rows that training scored are read again, and compared by
        their hash (training.contents).
        """
        if self.config is None:
            return "no run is beside the model: whether these are its dev rows is not known"
        if self.data is None or spec.name not in self.data:
            return "the run has no record of this task's dev rows: they were not compared"
        train = self.config.train
        split = encode_task(
            spec,
            "dev",
            tokenizer,
            self.root,
            self.cache,
            train.max_length,
            train.limit_dev,
            self.config.run.seed,
        )
        if split.content_hash() != self.data[spec.name]["dev"]:
            return "the dev rows are NOT those that the training run scored: they have changed"
        if examples != split.num_examples:
            return (
                f"{examples:,} dev rows were scored; the training run scored {split.num_examples:,}"
            )
        return ""
