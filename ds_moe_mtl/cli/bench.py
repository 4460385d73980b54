"""ds-moe-mtl bench: throughput of our models, stock DeepSpeed and a plain Trainer."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, picture
from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.config.files import write_text

BENCHMARK = "throughput"
"""The one benchmark; its name may be left out."""


@dataclass(frozen=True)
class _Bench:
    """What is timed. ranks: numbers as in "1,2,4"; only: contestants as in "mt_tag,trainer"."""

    config: str | None
    overrides: tuple[str, ...]
    shape: str | None
    rounds: int
    clock: str
    ranks: str
    only: str | None
    output: Path | None
    plot: Path | None
    json: bool


def main(arguments: list[str]) -> int:
    """Print the tables (or JSON) and return the exit status."""
    parser = Parser(
        "bench [throughput]",
        "Times MT-TaG and MT-Switch against the dense model, DeepSpeed's own MoE layer and a plain "
        "Hugging Face Trainer on the same data, in turn.",
        "ds-moe-mtl bench throughput glue_small_mttag_minilm data.root=DATA train.precision=fp32",
    )
    parser.takes_a_run()
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds that count; on a GPU of ten steps each (15)"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--ranks", default="1", help="numbers of ranks, as in 1,2,4 (1)")
    parser.add_argument(
        "--only", help="contestants, as in mt_tag,trainer; mt_dense is always there (all)"
    )
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--plot", type=picture, help="draw the whole steps into this picture")
    parser.add_argument("--json", action="store_true", help="print JSON")
    if arguments and arguments[0] == BENCHMARK:
        arguments = arguments[1:]
    asked = parser.request(_Bench, arguments)
    return answer(lambda: _bench(asked))


def _bench(asked: _Bench) -> int:
    counts = _counts(asked.ranks)
    if asked.rounds < 2:
        raise UserError(f"--rounds = {asked.rounds}; allowed: 2 or more")
    config = load_config(asked.config, asked.overrides)
    from ds_moe_mtl.benchmark.chart import draw, show
    from ds_moe_mtl.benchmark.contestants import chosen
    from ds_moe_mtl.benchmark.worker import measure

    options = {
        "contestants": chosen(asked.only),
        "rounds": asked.rounds,
        "clock": asked.clock,
        "shape": asked.shape,
        "load": os.getloadavg()[0],  # before this command adds to it
    }

    def say(line: str) -> None:
        if not asked.json:
            print(line, flush=True)

    contests = []
    for count in counts:
        contests.append(measure("contest", config, options, count))
        show(contests[-1], say)
        say("")
    if asked.output is not None:
        write_text(asked.output, json.dumps(contests, indent=2) + "\n")
    if asked.plot is not None:
        draw(contests, asked.plot)
        say(f"picture: {asked.plot}")
    if asked.json:
        print(json.dumps(contests))
    return 0


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--ranks = {text!r}; allowed: whole numbers above 0, as in 1,2,4")
    return [int(part) for part in parts]
