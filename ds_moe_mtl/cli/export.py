"""ds-moe-mtl export: a trained model in another form, or a run for another topology."""

import os
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count, data_root
from ds_moe_mtl.config import UserError

FORMS = ("model", "huggingface", "dense", "onnx")


@dataclass(frozen=True)
class _Export:
    """What is written. checkpoint: its name, None for the newest; to_topology: None for a model."""

    run: Path
    to: str
    checkpoint: str | None
    to_topology: str | None
    output: Path
    task: str | None
    merge: bool
    int8: bool
    data_root: str | None
    limit: int | None
    licence: str | None


def main(arguments: list[str]) -> int:
    """Export and return the exit status."""
    parser = Parser(
        "export",
        "Writes a trained model in another form, or a run's checkpoint for another topology.",
        "ds-moe-mtl export runs/glue --to dense --task rte --output rte",
    )
    parser.add_argument("run", type=Path, help="a run's folder; but for --to model a model's too")
    parser.add_argument(
        "--to",
        choices=FORMS,
        default="model",
        help="model: a checkpoint as a model folder (default); huggingface: all tasks in a folder "
        "for transformers; dense: one task as a plain transformers classifier; onnx: one task",
    )
    parser.add_argument("--checkpoint", help="step_00000100, say; default: the newest")
    parser.add_argument(
        "--to-topology",
        metavar="T",
        help="ranks=N,ep_size=N,zero_stage=N: what is to continue it (default 1, 1 and 1)",
    )
    parser.add_argument("--task", help="dense, onnx: which; huggingface: the one in use at first")
    parser.add_argument(
        "--merge", action="store_true", help="dense: without dev rows, experts in equal shares"
    )
    parser.add_argument("--int8", action="store_true", help="onnx: write model_int8.onnx too")
    parser.add_argument("--data-root", help="a local data root; default: the run's own")
    parser.add_argument("--limit", type=count, help="compare on at most so many dev examples")
    parser.add_argument("--licence", help="of the model, for its card; default: unknown")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    asked = parser.request(_Export, arguments)
    return answer(lambda: _export(asked))


def _export(asked: _Export) -> int:
    _check(asked)
    if asked.to == "model":
        return _from_checkpoint(asked)
    from ds_moe_mtl.export.source import open_source

    root = data_root(asked.data_root, asked.run)
    source = open_source(asked.run, asked.checkpoint, root, asked.limit, asked.task)
    if asked.to == "huggingface":
        from ds_moe_mtl.evaluation.card import model_card
        from ds_moe_mtl.export.huggingface import export_huggingface
        from ds_moe_mtl.studies.run_intervals import run_intervals

        ends = run_intervals(source.run) if source.run is not None else {}
        card = model_card(source.model.description, source.results, ends, asked.licence)
        export_huggingface(source, asked.output, asked.task, card, print)
    elif asked.to == "dense":
        from ds_moe_mtl.export.dense import export_dense

        export_dense(source, asked.task, asked.output, asked.merge, print)
    else:
        from ds_moe_mtl.export.onnx import export_onnx

        export_onnx(source, asked.task, asked.output, asked.merge, asked.int8, print)
    print(f"{asked.to}: {asked.output}")
    return 0


def _check(asked: _Export) -> None:
    """Raise UserError, one line, for options that do not go together."""
    if asked.to == "model" and not asked.run.is_dir():
        raise UserError(f"{asked.run}: no such folder; allowed: a run's folder")
    if asked.to_topology is not None and asked.to != "model":
        raise UserError(f"--to-topology with --to {asked.to}; allowed: one of them")
    if asked.to in ("dense", "onnx") and asked.task is None:
        raise UserError(f"--to {asked.to}: give --task, the task to export")
    for option, given, forms in (
        ("--task", asked.task, ("huggingface", "dense", "onnx")),
        ("--merge", asked.merge, ("dense", "onnx")),
        ("--int8", asked.int8, ("onnx",)),
        ("--licence", asked.licence, ("huggingface",)),
        ("--data-root", asked.data_root, ("huggingface", "dense", "onnx")),
        ("--limit", asked.limit, ("huggingface", "dense", "onnx")),
    ):
        if given and asked.to not in forms:
            raise UserError(f"{option} with --to {asked.to}; allowed: {', '.join(forms)}")


def _from_checkpoint(asked: _Export) -> int:
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
