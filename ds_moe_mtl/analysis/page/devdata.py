"""The dev rows of a run, read again: only where they are, to a hash, the rows that it scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.analysis.page.stored import Part, StoredRun
from ds_moe_mtl.config import UserError
from ds_moe_mtl.data import encode_task, split_rows
from ds_moe_mtl.models.description import encoder_config_of
from ds_moe_mtl.models.tokenizer import limits_by, load_tokenizer
from ds_moe_mtl.tasks import TaskSpec


@dataclass(frozen=True)
class DevRows:
    """One task's dev rows. tokens: of a sequence, in the mean; columns: a value an example."""

    columns: dict[str, list]
    tokens: float

    def text_of(self, spec: TaskSpec, example: int) -> list[tuple[str, str]]:
        """Return (column, text) of everything of an example but its label."""
        names = [name for name in spec.columns if name != spec.label]
        return [(name, _text(self.columns[name][example])) for name in names]


def read_dev_rows(run: StoredRun) -> tuple[dict[str, DevRows], dict[str, str]]:
    """Return the dev rows by task, and by task why others are not there: one line each."""
    found: dict[str, DevRows] = {}
    reasons: dict[str, str] = {}
    for part in run.parts:
        names = [name for name in run.results.get("tasks", {}) if name in part.specs]
        if not names:
            continue
        try:
            tokenizer = tokenizer_of(part)
        except (UserError, ValueError, OSError) as error:
            reasons |= dict.fromkeys(names, _line(error))
            continue
        for name in names:
            try:
                found[name] = _read(run, part, name, tokenizer)
            except UserError as error:
                reasons[name] = _line(error)
    return found, reasons


def tokenizer_of(part: Part):
    """Return the tokenizer of a part's model folder. Raises UserError or ValueError for none."""
    return load_tokenizer(part.folder / "model", limits_by(encoder_config_of(part.description)))


def _read(run: StoredRun, part: Part, name: str, tokenizer) -> DevRows:
    if part.config is None:
        raise UserError("the run has no config.yaml, which says where its data is")
    stored = run.results.get("data", {}).get(name)
    if stored is None:
        raise UserError("the run is of before data was recorded, so its rows cannot be compared")
    spec, config = part.specs[name], part.config
    limit, seed = config.train.limit_dev, config.run.seed
    split = encode_task(
        spec,
        "dev",
        tokenizer,
        config.data.root,
        config.data.cache,
        config.train.max_length,
        limit,
        seed,
    )
    if split.content_hash() != stored["dev"]:
        raise UserError("the dev rows have changed since the run scored them")
    columns = split_rows(spec, "dev", config.data.root, limit, seed)
    assert len(next(iter(columns.values()))) == split.num_examples
    return DevRows(columns, float(np.mean(split.lengths)))


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " | ".join(map(str, value))
    return str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
