"""ds-moe-mtl export: a checkpoint as a model folder, or as a run for another topology."""

import os
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError


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
    options = parser.parse_args(arguments)
    return answer(lambda: _export(options))


def _export(options) -> int:
    if not options.run.is_dir():
        raise UserError(f"{options.run}: no such folder; allowed: a run's folder")
    from ds_moe_mtl.engine.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.training import export

    topology = export.parse_topology(options.to_topology) if options.to_topology else None
    checkpoint = export.choose_checkpoint(options.run, options.checkpoint)
    if topology is None:
        export.export_model(checkpoint, options.output)
        print(f"model: {options.output}")
        return 0
    export.start_reshape(checkpoint.absolute(), topology, options.output.absolute())
    print(f"continue it with: train.py {options.output / 'config.yaml'} on {topology.ranks} ranks")
    return 0
