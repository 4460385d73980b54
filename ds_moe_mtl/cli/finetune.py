"""ds-moe-mtl finetune: one task from a trained model; grids, seeds, a leaderboard."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _FineTune:
    """What is fine-tuned, as it is typed; see studies.finetune.FineTuning.

    rest: a YAML and overrides, in any order.
    """

    model: str
    task: str
    gate: str | None
    head: str
    seeds: int
    grid: tuple[str, ...]
    output: Path | None
    keep: str
    json: bool
    rest: tuple[str, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """The words that set a key."""
        return tuple(word for word in self.rest if "=" in word)

    def experiment(self, default: Path) -> Path:
        """Return the YAML that is named, or the default. Raises UserError for two, or none such."""
        from ds_moe_mtl.config.load import find_experiment

        files = [word for word in self.rest if "=" not in word]
        if len(files) > 1:
            raise UserError(
                f"command line: two YAML files, {files[0]} and {files[1]}; allowed: one"
            )
        return find_experiment(Path(files[0])) if files else default

    @property
    def folder(self) -> Path:
        """Where the runs lie: what is asked for, or a folder named by task and gate."""
        if self.output is not None:
            return self.output.absolute()
        name = self.task if self.gate is None else f"{self.task}-{self.gate}"
        model = Path(self.model)
        if model.is_dir() and not (model / "tokenizer.json").is_file():
            return (model / "finetune" / name).absolute()
        return (Path("runs") / "finetune" / model.name / name).absolute()


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
    parser.add_argument("--seeds", type=count, default=1, help="runs a point, seeds 0, 1, ... (1)")
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
    asked = parser.request(_FineTune, arguments)
    return answer(lambda: _finetune(asked))


def _finetune(asked: _FineTune) -> int:
    from ds_moe_mtl.engine.engine import device_type, stop_process_group

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.studies.finetune import EXPERIMENT, FineTuning, finetune

    experiment = asked.experiment(EXPERIMENT)
    ranks = rendezvous(os.environ)
    first = ranks.rank == 0

    def say(line: str) -> None:
        if first:
            print(line, flush=True, file=sys.stderr if asked.json else sys.stdout)

    for item in asked.overrides:
        if item.partition("=")[0] == "run.dir":
            raise UserError(f"{item}: a fine-tuning has several runs; allowed: --output FOLDER")
    job = FineTuning(
        model=asked.model,
        task=asked.task,
        folder=asked.folder,
        gate=asked.gate,
        head=asked.head,
        experiment=experiment,
        overrides=asked.overrides,
        grid=dict(parse_grid(item) for item in asked.grid),
        seeds=asked.seeds,
        keep=asked.keep,
    )
    try:
        status, rows = finetune(job, ranks, say)
    finally:
        stop_process_group()
    if first and asked.json:
        print(json.dumps({"task": job.task, "rows": rows}))
    elif first:
        print_leaderboard(rows, say)
        say(f"leaderboard: {job.folder / 'leaderboard.json'}")
    return status


def print_leaderboard(rows: list[dict], say: Callable[[str], None]) -> None:
    """Say the points of a grid, the best mean first, with deviation, seeds and the best seed."""
    say("")
    say(f"{'mean':>8}{'std':>7}{'seeds':>7}{'max':>8}  point")
    for row in rows:
        spread = "-" if row["std"] is None else f"{row['std']:.2f}"
        point = " ".join(row["point"]) or "-"
        say(f"{row['mean']:>8.2f}{spread:>7}{row['n']:>7}{row['max']:>8.2f}  {point}")


def parse_grid(item: str) -> tuple[str, list[str]]:
    """Return (key, values) of "section.key=A,B". Raises UserError for no values."""
    key, _, values = item.partition("=")
    found = [value for value in values.split(",") if value]
    if not found:
        raise UserError(f"--grid {item}: no values; allowed: section.key=value,value")
    return key, found
