"""ds-moe-mtl finetune: one task from a trained model; grids, seeds, a leaderboard."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError


def main(arguments: Sequence[str]) -> int:
    """Fine-tune, print the leaderboard, and return the exit status."""
    parser = Parser(
        "finetune",
        "Fine-tunes one task from a trained model, or from an encoder (the Single-Task baseline).",
        "ds-moe-mtl finetune runs/glue_mttag_minilm --task imdb --gate sst2 --seeds 3 "
        "--grid train.lr=2e-5,5e-5,1e-4 data.sample=0.01",
    )
    parser.add_argument("model", help="a finished run, a model folder, or an encoder: minilm, ...")
    parser.add_argument("--task", required=True, help="a known task, or the model's own")
    parser.add_argument(
        "--gate",
        help="of an mt_tag model: own, random, a task of the model, or auto (least held-out loss "
        "on the few examples); default: own where the model has the task, else auto",
    )
    parser.add_argument("--head", choices=("auto", "keep", "new"), default="auto")
    parser.add_argument("--seeds", type=_count, default=1, help="runs a point, seeds 0, 1, ... (1)")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="values to try, as train.epochs=5,10; several: all combinations",
    )
    parser.add_argument("--output", type=Path, help="default: <model>/finetune/<task>")
    parser.add_argument("--keep", choices=("best", "all", "none"), default="best", help="models")
    parser.add_argument("--json", action="store_true", help="print the leaderboard as JSON")
    parser.add_argument("rest", nargs="*", metavar="CONFIG or key=value", help="finetune.yaml")
    options = parser.parse_intermixed_args(arguments)
    return answer(lambda: _finetune(options))


def _finetune(options) -> int:
    from ds_moe_mtl.config.load import find_experiment
    from ds_moe_mtl.engine.engine import device_type, stop_process_group

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.studies.finetune import EXPERIMENT, FineTuning, finetune

    files = [item for item in options.rest if "=" not in item]
    if len(files) > 1:
        raise UserError(f"command line: two YAML files, {files[0]} and {files[1]}; allowed: one")
    ranks = rendezvous(os.environ)
    first = ranks.rank == 0

    def say(line: str) -> None:
        if first:
            print(line, flush=True, file=sys.stderr if options.json else sys.stdout)

    job = FineTuning(
        model=options.model,
        task=options.task,
        folder=(options.output or _default_folder(options)).absolute(),
        gate=options.gate,
        head=options.head,
        experiment=find_experiment(Path(files[0])) if files else EXPERIMENT,
        overrides=tuple(item for item in options.rest if "=" in item),
        grid=dict(parse_grid(item) for item in options.grid),
        seeds=options.seeds,
        keep=options.keep,
    )
    try:
        status, rows = finetune(job, ranks, say)
    finally:
        stop_process_group()
    if first and options.json:
        print(json.dumps({"task": job.task, "rows": rows}))
    elif first:
        print_leaderboard(rows, say)
        say(f"leaderboard: {job.folder / 'leaderboard.json'}")
    return status


def print_leaderboard(rows: list[dict], say) -> None:
    """Say the points of a grid, the best mean first, with deviation, seeds and the best seed."""
    say("")
    say(f"{'mean':>8}{'std':>7}{'seeds':>7}{'max':>8}  point")
    for row in rows:
        spread = "-" if row["std"] is None else f"{row['std']:.2f}"
        point = " ".join(row["point"]) or "-"
        say(f"{row['mean']:>8.2f}{spread:>7}{row['n']:>7}{row['max']:>8.2f}  {point}")


def _default_folder(options) -> Path:
    name = options.task if options.gate is None else f"{options.task}-{options.gate}"
    model = Path(options.model)
    if model.is_dir() and not (model / "tokenizer.json").is_file():
        return model / "finetune" / name
    return Path("runs") / "finetune" / model.name / name


def parse_grid(item: str) -> tuple[str, list[str]]:
    """Return (key, values) of "section.key=A,B". Raises UserError for no values."""
    key, _, values = item.partition("=")
    found = [value for value in values.split(",") if value]
    if not found:
        raise UserError(f"--grid {item}: no values; allowed: section.key=value,value")
    return key, found


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number above 0")
    return int(text)
