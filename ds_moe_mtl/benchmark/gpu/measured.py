"""The run that the parts measure: its configuration, its device, its first batches.

On a card: the GLUE mixture of data.root, or the shipped suite where none is given, bf16, 960
examples a step. Without one: a toy encoder and two examples, to see that the parts work.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from ds_moe_mtl.benchmark.workload import Workload, find_workload
from ds_moe_mtl.config import RunConfig, load_config
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.models.pretrained import find_encoder
from ds_moe_mtl.planner.shape import Shape, random_transformer
from ds_moe_mtl.ranks.rendezvous import Ranks, rendezvous

MIXTURE, SHIPPED = "glue_mttag_minilm", "embedded_mttag_minilm"
CARD = (
    "train.precision=bf16",
    "train.batch_size=960",
    "train.limit_examples=5000",
    "moe.gate_scale=preserve",
)
REHEARSAL = (
    "train.precision=bf16",
    "train.batch_size=2",
    "train.limit_examples=40",
    "train.limit_dev=8",
    "moe.num_experts=2",
    "moe.gate_scale=preserve",
)
INTERPRETED = ("moe.impl=triton",)
"""Without a card: Triton's interpreter, some seconds a step."""
TOY = Shape(layers=1, hidden=32, intermediate=64, heads=2)


class Here(NamedTuple):
    """This process as the one rank of a run, and its device."""

    ranks: Ranks
    device: torch.device


def start_here() -> Here:
    """Join a process group of one; it needs DeepSpeed."""
    from ds_moe_mtl.engine.engine import start_process_group

    ranks = rendezvous(os.environ)
    return Here(ranks, start_process_group(ranks))


def measured_config(request: dict, more: Sequence[str] = ()) -> RunConfig:
    """Return the measured run's configuration; more: overrides of a variant.

    Raises UserError for what the configuration refuses.
    """
    given = request["overrides"]
    has_data = any(text.startswith("data.root=") for text in given)
    ours = CARD
    if not request["gpu"]:
        scratch = Path(request["scratch"])
        places = (f"model.encoder={_toy_encoder(scratch)}", f"data.cache={scratch / 'tokens'}")
        ours = (*REHEARSAL, *places)
    name = MIXTURE if has_data else SHIPPED
    return load_config(name, [*ours, *given, *more])


def measured_shape(request: dict) -> str | None:
    """Return the name of the encoder's shape; None: the toy's, which its folder has."""
    return request.get("shape", "bert_base") if request["gpu"] else None


def measured_workload(request: dict, more: Sequence[str] = ()) -> Workload:
    """Return the measured run's plan and encoder."""
    return find_workload(measured_config(request, more), measured_shape(request), _unsaid)


def device_of(request: dict) -> torch.device:
    """Return the measured device, without a process group."""
    return torch.device("cuda:0" if request["gpu"] else "cpu")


def first_steps(
    workload: Workload, device: torch.device, count: int, padded: bool
) -> list[tuple[list[MultiTaskBatch], int]]:
    """Return the run's first steps: micro-batches, and examples.

    padded: with attention's groups.
    """
    batches = workload.plan.super_batches(0, 1, padded, device.index)
    with closing(batches) as loader:
        return list(islice(loader, count))


def _unsaid(line: str) -> None:
    pass


def _toy_encoder(scratch: Path) -> Path:
    """Return the folder of a tiny BERT of random weights with MiniLM's tokenizer."""
    folder = scratch / "toy_encoder"
    if not folder.exists():
        source = Path(find_encoder("minilm").folder)
        torch.manual_seed(0)
        random_transformer(TOY, dropout=0.1).save_pretrained(folder)
        for file in source.iterdir():
            if file.name.startswith(("tokenizer", "vocab", "special_tokens")):
                shutil.copy(file, folder)
    return folder
