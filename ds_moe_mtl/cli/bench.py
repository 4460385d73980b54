"""ds-moe-mtl bench: sparse against FLOP-matched dense, in one run on one process."""

import json
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import load_config


def main(arguments: list[str]) -> int:
    """Print the tables (or JSON) and return the exit status."""
    parser = Parser(
        "bench",
        "Times MT-TaG and MT-Switch against the dense model on the same batches.",
        "ds-moe-mtl bench glue_small_mttag_minilm data.root=DATA train.precision=fp32",
    )
    parser.add_argument("config", nargs="?", help="a YAML; default: the embedded suite's")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (15)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument(
        "--stock", action="store_true", help="DeepSpeed's own MoE layer too: capacity 1, no drop"
    )
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.config is not None and "=" in options.config:
        options.overrides.insert(0, options.config)
        options.config = None
    return answer(lambda: _bench(options))


def _bench(options) -> int:
    config = load_config(options.config, options.overrides)
    from ds_moe_mtl.benchmark.throughput import measure

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    found = measure(config, options.rounds, options.clock, options.stock, say)
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    if options.json:
        print(json.dumps(found))
        return 0
    about = "device", "threads", "torch", "precision", "clock"
    say(", ".join(f"{key} {found[key]}" for key in about))
    for table, title in (("model", "forward + backward"), ("step", "whole step, DeepSpeed")):
        say("")
        say(f"{title:<24}{'ms':>9}{'quartiles':>18}{'/ dense':>9}{'ex/s':>8}  parts, ms")
        for kind, row in found[table].items():
            low, high = row["quartiles_ms"]
            parts = "  ".join(
                f"{key[:-3]} {value:.0f}"
                for key, value in row.items()
                if key.endswith("_ms") and key != "quartiles_ms"
            )
            say(
                f"{kind:<24}{row['ms']:>9.1f}{f'{low:.0f} to {high:.0f}':>18}"
                f"{row['ratio']:>9.3f}{row['examples_per_s']:>8.0f}  {parts}"
            )
    return 0
