"""ds-moe-mtl bench: throughput of our models, stock DeepSpeed and a plain Trainer."""

import json
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError, load_config

BENCHMARK = "throughput"
"""The one benchmark; its name may be left out."""


def main(arguments: list[str]) -> int:
    """Print the tables (or JSON) and return the exit status."""
    parser = Parser(
        "bench [throughput]",
        "Times MT-TaG and MT-Switch against the dense model, DeepSpeed's own MoE layer and a plain "
        "Hugging Face Trainer on the same data, in turn.",
        "ds-moe-mtl bench throughput glue_small_mttag_minilm data.root=DATA train.precision=fp32",
    )
    parser.takes_a_run()
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (15)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--ranks", default="1", help="numbers of ranks, as in 1,2,4 (1)")
    parser.add_argument(
        "--only", help="contestants, as in mt_tag,trainer; mt_dense is always there (all)"
    )
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--plot", type=Path, help="draw the whole steps into this picture")
    parser.add_argument("--json", action="store_true", help="print JSON")
    if arguments and arguments[0] == BENCHMARK:
        arguments = arguments[1:]
    options = parser.parse_run(arguments)
    return answer(lambda: _bench(options))


def _bench(options) -> int:
    counts = _counts(options.ranks)
    if options.rounds < 2:
        raise UserError(f"--rounds = {options.rounds}; allowed: 2 or more")
    config = load_config(options.config, options.overrides)
    from ds_moe_mtl.benchmark.chart import draw, show
    from ds_moe_mtl.benchmark.contestants import chosen
    from ds_moe_mtl.ranks.local import on_ranks

    names = chosen(options.only)

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    contests = []
    for count in counts:
        request = {
            "contestants": names,
            "rounds": options.rounds,
            "clock": options.clock,
            "shape": options.shape,
        }
        contests.append(on_ranks("contest", config, request, count))
        show(contests[-1], say)
        say("")
    if options.output is not None:
        options.output.write_text(json.dumps(contests, indent=2) + "\n")
    if options.plot is not None:
        draw(contests, options.plot)
        say(f"picture: {options.plot}")
    if options.json:
        print(json.dumps(contests))
    return 0


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--ranks = {text!r}; allowed: whole numbers above 0, as in 1,2,4")
    return [int(part) for part in parts]
