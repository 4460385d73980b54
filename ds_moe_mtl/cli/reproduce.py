"""ds-moe-mtl reproduce: the paper's tables, run and printed beside the paper's."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError


def main(arguments: Sequence[str]) -> int:
    """Run or resume a table, print the comparison, and return the exit status."""
    parser = Parser(
        "reproduce",
        "Runs (or resumes) what a table of the paper needs and prints the paper's beside ours.",
        "ds-moe-mtl reproduce table1 --budget cpu data.root=DATA",
    )
    parser.add_argument("table", help="table1 to table8")
    parser.add_argument("--budget", choices=("smoke", "cpu", "paper"), default="cpu")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/reproduce"), help="default: runs/reproduce"
    )
    parser.add_argument(
        "--print", action="store_true", dest="print_only", help="run nothing, print what is done"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")
    options = parser.parse_intermixed_args(arguments)
    return answer(lambda: _reproduce(options))


def _reproduce(options) -> int:
    from ds_moe_mtl.config.paper import load_budgets, load_mixtures, load_table

    for item in options.overrides:
        if "=" not in item:
            raise UserError(f"command line: {item!r} sets nothing; allowed: section.key=value")
    table = load_table(options.table)
    budget = load_budgets()[options.budget]
    mixtures = load_mixtures()
    from ds_moe_mtl.training.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.analysis.reproduction import compare, render
    from ds_moe_mtl.training.rendezvous import rendezvous
    from ds_moe_mtl.training.reproduction import collect, plan_table, run_table
    from ds_moe_mtl.training.run_folder import write_json

    ranks = rendezvous(os.environ)
    folder = options.output.absolute() / options.budget

    def say(line: str) -> None:
        if ranks.rank == 0:
            print(line, flush=True, file=sys.stderr if options.json else sys.stdout)

    plan = plan_table(
        options.table, table, options.budget, budget, mixtures, folder, options.overrides
    )
    status = 0 if options.print_only else run_table(plan, ranks, say)
    if ranks.rank != 0:
        return status
    scores = collect(plan)
    text = render(table, budget, table.stand_in.get(options.budget), scores)
    facts = {
        "table": options.table,
        "budget": options.budget,
        "done": len(scores),
        "cells": len(plan.cells),
        "rows": compare(table, scores),
        "scores": [
            {"row": row, "column": column, **score} for (row, column), score in scores.items()
        ],
    }
    if scores:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{options.table}.md").write_text(text)
        write_json(folder / f"{options.table}.json", facts)
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"\n{text}")
        print(f"{len(scores)} of {len(plan.cells)} cells done; {folder / options.table}.md")
    return status
