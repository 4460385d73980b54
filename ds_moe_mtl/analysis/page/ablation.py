"""Which experts matter: the dev loss of each task with one expert of one layer disabled.

An expert is disabled by zeroing the weights, and the bias if it has one, of its last layer: its
tokens get nothing of this layer's FFN branch, and keep what the residual connection and attention
give them. (Merged experts: its share of every mixture is lost. A part that sees every token,
moe.shared_share, stays.)
The loss is that of training, a mean over examples.

<run>/expert_losses.json    the figures, with what they were made of: made once

K tasks, L layers with experts, E experts.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ds_moe_mtl.analysis.page.stored import Part
from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import read_json, write_json
from ds_moe_mtl.data import EncodedSplit, encode_task, evaluation_batches
from ds_moe_mtl.data.source import content_hash
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.description import WEIGHTS
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from ds_moe_mtl.models.token_level.experts import ffn_weights

FILE = "expert_losses.json"
FORMAT = 1


@dataclass(frozen=True)
class ExpertLosses:
    """whole: each task's loss [K]. disabled: [K][L][E], with that expert disabled.

    rows: dev examples of a task at most. model: SHA-256 of the weights; data: of the rows.
    """

    rows: int
    model: str
    data: str
    tasks: tuple[str, ...]
    whole: tuple[float, ...]
    disabled: list
    seconds: float

    @property
    def rises_KLE(self) -> np.ndarray:
        """How much each task's loss rises without the expert."""
        return np.array(self.disabled) - np.array(self.whole)[:, None, None]


def stored_losses(part: Part) -> tuple[ExpertLosses | None, str]:
    """Return the figures of a run whose weights are those they were made of, and else why not."""
    found = read_json(part.folder / FILE)
    if found is None:
        return (
            None,
            "Not measured: `ds-moe-mtl report RUN --experts` does, with the model and the data.",
        )
    if found.get("format") != FORMAT or found["model"] != _weights_hash(part):
        return None, f"{FILE} is of another model; `ds-moe-mtl report RUN --experts` makes it anew."
    known = {key: found[key] for key in ExpertLosses.__dataclass_fields__}
    known |= {"tasks": tuple(known["tasks"]), "whole": tuple(known["whole"])}
    return ExpertLosses(**known), ""


def measure_losses(part: Part, rows: int, say: Callable[[str], None]) -> ExpertLosses:
    """Return the figures on at most `rows` dev examples a task; made once and kept beside the run.

    say: gets one line with the time that it will take. Raises UserError for a model without
    experts that take tokens, and where its data is gone.
    """
    if part.description is None:
        raise UserError(f"{part.folder}: no model; --experts needs that of a finished run")
    if not part.description.get("routing"):
        raise UserError(
            f"{part.folder}: a {part.description['kind']} model has no experts that take tokens; "
            f"allowed with --experts: mt_tag, mt_switch"
        )
    model = MultiTaskModel.from_pretrained(part.folder)
    splits = {name: _split(part, model, name, rows) for name in model.specs}
    made_of = {"rows": rows, "model": _weights_hash(part), "data": _rows_hash(splits)}
    stored, _ = stored_losses(part)
    if stored is not None and all(getattr(stored, key) == made_of[key] for key in made_of):
        return stored
    began = time.perf_counter()
    whole, used = {}, {}
    for name, split in splits.items():
        whole[name], used[name] = _loss(model, name, split)
    passes = sum(int((counts_LE > 0).sum()) for counts_LE in used.values())
    once = (time.perf_counter() - began) / len(splits)
    say(f"experts: {passes} passes over {rows} dev rows of a task, about {_clock(passes * once)}")
    disabled = {name: np.full(used[name].shape, whole[name]) for name in splits}
    for layer, ffn in enumerate(routed_ffns(model.network)):
        for number, expert in enumerate(ffn.moe.experts):
            with zeroed(expert):
                for name, split in splits.items():
                    if used[name][layer, number] > 0:  # else nothing of it changes
                        disabled[name][layer, number], _ = _loss(model, name, split)
    found = ExpertLosses(
        **made_of,
        tasks=tuple(splits),
        whole=tuple(whole.values()),
        disabled=[disabled[name].tolist() for name in splits],
        seconds=time.perf_counter() - began,
    )
    write_json(part.folder / FILE, {"format": FORMAT, **asdict(found)})
    return found


def _split(part: Part, model: MultiTaskModel, name: str, rows: int) -> EncodedSplit:
    config = part.config
    if config is None:
        raise UserError(f"{part.folder}: no config.yaml, which says where the run's data is")
    return encode_task(
        model.specs[name],
        "dev",
        model.tokenizer,
        config.data.root,
        config.data.cache,
        config.train.max_length,
        rows,
        config.run.seed,
    )


@torch.no_grad()
def _loss(model: MultiTaskModel, name: str, split: EncodedSplit) -> tuple[float, np.ndarray]:
    """Return an example's mean loss, and each expert's tokens [L, E]."""
    network, total, used_LE = model.network, 0.0, 0
    for batch in evaluation_batches(split, list(model.specs).index(name)):
        batch = batch.to(model.device)
        outputs = network(**network_inputs(batch))
        total += float((network.losses(outputs, batch) * batch.weights_B).sum())
        used_LE = used_LE + torch.stack(outputs.counts).double().cpu().numpy()
    return total / split.num_examples, used_LE


@contextmanager
def zeroed(expert: torch.nn.Module) -> Iterator[None]:
    """Have an expert give 0 inside the block."""
    weights = ffn_weights([expert])
    assert weights is not None, "a stored expert is two linear layers"
    _, _, w2, b2, _ = weights
    kept = [(tensor, tensor.detach().clone()) for tensor in (*w2, *(b2 or ()))]
    try:
        for tensor, _ in kept:
            tensor.data.zero_()
        yield
    finally:
        for tensor, before in kept:
            tensor.data.copy_(before)


def _weights_hash(part: Part) -> str:
    path = part.folder / "model" / WEIGHTS
    return content_hash([path]) if path.is_file() else ""


def _rows_hash(splits: dict[str, EncodedSplit]) -> str:
    hashes = {name: split.content_hash() for name, split in splits.items()}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
