"""ds-moe-mtl add: new tasks for a trained model."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _Addition:
    """What is added, as it is typed; see studies.grow.Growth."""

    model: Path
    config: Path
    overrides: tuple[str, ...]
    train: str
    gate: tuple[str, ...]
    limit: int
    json: bool


def main(arguments: Sequence[str]) -> int:
    """Train the new tasks, tell how the model's own have moved, and return the exit status."""
    parser = Parser(
        "add",
        "Trains new tasks into a trained model, which keeps its own: by default their gates and "
        "heads alone, so that the others' answers stay as they are.",
        "ds-moe-mtl add runs/mine new_tasks.yaml run.dir=runs/mine_and_more",
    )
    parser.add_argument("model", type=Path, help="a finished run or a model folder")
    parser.add_argument("config", type=Path, help="a YAML with the new tasks and how to train them")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument(
        "--train",
        choices=("new", "all"),
        default="new",
        help="new: gates and heads of the new tasks; all: every weight (name old tasks in the YAML "
        "too for them to be rehearsed)",
    )
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="[TASK=]GATE",
        help="of an mt_tag model: auto (least held-out loss, the default), random, or a task of "
        "the model; for all new tasks, or for one",
    )
    parser.add_argument("--limit", type=count, default=1000, help="dev rows a kept task (1000)")
    parser.add_argument("--json", action="store_true", help="print the kept tasks' rows as JSON")
    asked = parser.request(_Addition, arguments)
    return answer(lambda: _add(asked))


def _add(asked: _Addition) -> int:
    from ds_moe_mtl.config.load import find_experiment
    from ds_moe_mtl.engine.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.studies.grow import Growth, grow, growth_config

    stray = [item for item in asked.overrides if "=" not in item]
    if stray:
        raise UserError(f"command line: {stray[0]!r}; allowed: one YAML, then section.key=value")
    ranks = rendezvous(os.environ)
    first = ranks.rank == 0

    def say(line: str) -> None:
        if first:
            print(line, flush=True, file=sys.stderr if asked.json else sys.stdout)

    gates = {name: gate for name, gate in map(_gate, asked.gate)}
    frozen, yaml = asked.train == "new", find_experiment(asked.config)
    job = Growth(asked.model, yaml, frozen, gates, asked.overrides, asked.limit)
    config = growth_config(job, say)
    status, rows = grow(config, job, ranks, say)
    if rows is not None and asked.json:
        print(json.dumps(rows))
    elif rows is not None:
        tell_kept(rows, frozen, say)
    return status


def tell_kept(rows: Sequence[dict], frozen: bool, say: Callable[[str], None]) -> None:
    """Say how the tasks that the model had do before and after."""
    say("")
    say(f"{'kept task':<20}{'metric':<12}{'before':>8}{'after':>8}{'rows':>8}  outputs moved by")
    for row in rows:
        if "error" in row:
            say(f"{row['task']:<20}not compared: {row['error']}")
            continue
        moved = "0 (the same to the bit)" if row["moved"] == 0 else f"at most {row['moved']:.1e}"
        say(
            f"{row['task']:<20}{row['metric']:<12}{row['before']:>8.1f}{row['after']:>8.1f}"
            f"{row['examples']:>8,}  {moved}"
        )


def _gate(given: str) -> tuple[str, str]:
    """Return (task, gate); the task is "" where the gate is for all."""
    task, equals, gate = given.rpartition("=")
    if not gate or (equals and not task):
        raise UserError(f"--gate: {given!r}; allowed: auto, random, a task, or TASK=one of these")
    return task, gate
