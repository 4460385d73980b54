"""All tasks in one folder that transformers opens with trust_remote_code, compared on dev rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import new_folder
from ds_moe_mtl.data import EncodedSplit, MultiTaskBatch, read_split
from ds_moe_mtl.export.agreement import (
    Run,
    compare,
    outputs_of,
    padded,
    tell,
    write_about,
)
from ds_moe_mtl.export.source import ExportSource
from ds_moe_mtl.models.encoder_files import quiet
from ds_moe_mtl.models.plain_classifier import plain_outputs
from ds_moe_mtl.models.portable.folder import KINDS
from ds_moe_mtl.tasks import TaskSpec

Say = Callable[[str], None]


def export_huggingface(
    source: ExportSource, output: Path, task: str | None, card: str, say: Say
) -> None:
    """Write the folder, and export.json beside it with how it agrees on every task's dev rows.

    task: the one in use at first. card: its README.md. Raises UserError where the folder is taken,
    the model is none that transformers can be given, or the folder does not answer as its source;
    nothing is left then.
    """
    from transformers import AutoTokenizer

    with new_folder(output) as folder:
        source.model.save_pretrained(folder, task, card)
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        opened = {
            auto: _opened(folder, auto)
            for auto in {KINDS[spec.kind] for spec in source.model.specs.values()}
        }
        agreements = {}
        for name, spec in source.model.specs.items():
            split = source.dev(name)
            if split is None:
                say(f"{name}: not compared, no dev rows ({source.no_data[name]})")
                continue
            _check_tokens(spec, split, source, tokenizer)
            run = _run(opened[KINDS[spec.kind]], spec, tokenizer)
            found = outputs_of(run, split, spec.num_outputs)
            agreements[name] = tell(spec, compare(spec, split, source.outputs(name), found), say)
        about = {"to": "huggingface", "source": source.name, "tasks": agreements}
        write_about(folder, {**about, "not_compared": list(source.no_data)})


def _opened(folder: Path, auto: str):
    """Return the folder's model as a user of transformers opens it."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    with quiet():
        return getattr(transformers, f"AutoModelFor{auto}").from_pretrained(
            folder, trust_remote_code=True
        )


def _run(model, spec: TaskSpec, tokenizer) -> Run:
    """Return what runs one task of the opened model on a batch of ours."""
    types = "token_type_ids" in tokenizer.model_input_names

    def run(batch: MultiTaskBatch) -> torch.Tensor:
        inputs = padded(batch, tokenizer.pad_token_id, types)
        if spec.kind == "span":
            inputs["word_spans"] = batch.spans_B22
        return plain_outputs(model(**inputs, task=spec.name))

    return run


def _check_tokens(spec: TaskSpec, split: EncodedSplit, source: ExportSource, tokenizer) -> None:
    """Raise UserError where the folder's tokenizer reads the texts otherwise than the source did.

    Compared for one text, or pairs; what is joined, or chosen from, has no plain call of a
    tokenizer.
    """
    if spec.kind in ("ranking", "options") or spec.joined or source.limit:
        return
    columns: dict[str, list] = {name: [] for name in spec.text}
    for part in spec.splits("dev"):
        for name, values in columns.items():
            values += read_split(spec, part, source.data_root)[name]
    length = min(spec.max_length, tokenizer.model_max_length)
    texts = [columns[name] for name in spec.text]
    if spec.kind == "tags":
        texts[0] = [" ".join(words) for words in texts[0]]
    texts[0] = [spec.prefix + text for text in texts[0]]
    found = tokenizer(*texts, truncation=True, max_length=length)["input_ids"]
    wanted = np.split(np.asarray(split.input_ids), split.offsets[1:-1])
    others = sum(
        not np.array_equal(mine, theirs) for mine, theirs in zip(wanted, found, strict=True)
    )
    if others:
        raise UserError(
            f"{spec.name}: the folder's tokenizer reads {others:,} of {len(wanted):,} dev rows "
            f"otherwise than the model was trained to"
        )
