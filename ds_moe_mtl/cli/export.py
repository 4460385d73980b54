"""ds-moe-mtl export: a checkpoint as a model folder, or as a run for another topology."""

import os
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _Export:
    """What is written. checkpoint: its name, None for the newest; to_topology: None for a model."""

    run: Path
    checkpoint: str | None
    to_topology: str | None
    output: Path


def main(arguments: list[str]) -> int:
    """Export and return the exit status."""
    parser = Parser(
        "export",
        "Writes a run's checkpoint as a model folder, or as a run folder for another topology.",
        "ds-moe-mtl export runs/glue --to-topology ranks=4,ep_size=2,zero_stage=1 --output runs/g4",
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--checkpoint", help="step_00000100, say; default: the newest")
    parser.add_argument(
        "--to-topology",
        metavar="T",
        help="ranks=N,ep_size=N,zero_stage=N: what is to continue it (default 1, 1 and 1)",
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    asked = parser.request(_Export, arguments)
    return answer(lambda: _export(asked))


def _export(asked: _Export) -> int:
    if not asked.run.is_dir():
        raise UserError(f"{asked.run}: no such folder; allowed: a run's folder")
    from ds_moe_mtl.engine.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.export.model import choose_checkpoint, export_model
    from ds_moe_mtl.export.topology import parse_topology, reshape

    topology = parse_topology(asked.to_topology) if asked.to_topology else None
    checkpoint = choose_checkpoint(asked.run, asked.checkpoint)
    if topology is None:
        export_model(checkpoint, asked.output)
        print(f"model: {asked.output}")
        return 0
    reshape(checkpoint.absolute(), topology, asked.output.absolute(), print)
    print(f"continue it with: train.py {asked.output / 'config.yaml'} on {topology.ranks} ranks")
    return 0
