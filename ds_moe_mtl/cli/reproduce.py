"""ds-moe-mtl reproduce: the paper's tables, run and printed beside the paper's."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError


def main(arguments: Sequence[str]) -> int:
    """Run or resume tables, print the comparisons, and return the exit status."""
    parser = Parser(
        "reproduce",
        "Runs (or resumes) what tables of the paper need and prints the paper's beside ours.",
        "ds-moe-mtl reproduce table1 table3 --budget cpu --jobs 4 data.root=DATA",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="table | key=value",
        help="table1 to table8, one or several; section.key=value holds for all runs",
    )
    parser.add_argument("--budget", default="cpu", help="smoke, cpu (default), gpu or paper")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/reproduce"), help="default: runs/reproduce"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a process each (1)")
    parser.add_argument(
        "--only", metavar="PART", help='one part: a mixture, or a cell as "MT-TaG / RTE"'
    )
    parser.add_argument(
        "--print", action="store_true", dest="print_only", help="run nothing, print what is done"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a table")
    options = parser.parse_intermixed_args(arguments)
    return answer(lambda: _reproduce(options))


def _reproduce(options) -> int:
    from ds_moe_mtl.studies.tables.schema import load_budgets, load_mixtures, load_table

    names = list(dict.fromkeys(word for word in options.words if "=" not in word))
    overrides = [word for word in options.words if "=" in word]
    if not names:
        raise UserError("no table is named; allowed: table1 to table8, one or several")
    tables = {name: load_table(name) for name in names}
    budgets = load_budgets()
    if options.budget not in budgets:
        raise UserError(f"--budget: {options.budget!r}; allowed: {', '.join(budgets)}")
    if options.jobs < 1:
        raise UserError(f"--jobs: {options.jobs}; allowed: at least 1")
    if options.only is not None and len(tables) > 1:
        raise UserError(f"--only with {len(tables)} tables; allowed: one table")
    budget, mixtures = budgets[options.budget], load_mixtures()
    from ds_moe_mtl.engine.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.studies.tables.runs import part_of, plan_table, run_table

    ranks = rendezvous(os.environ)
    if options.jobs > 1 and ranks.world_size > 1:
        raise UserError(f"--jobs {options.jobs} on {ranks.world_size} ranks; allowed: one process")
    folder = options.output.absolute() / options.budget

    def say(line: str) -> None:
        if ranks.rank == 0:
            print(line, flush=True, file=sys.stderr if options.json else sys.stdout)

    plans = {
        name: plan_table(name, table, options.budget, budget, mixtures, folder, overrides)
        for name, table in tables.items()
    }
    status = 0
    if options.only is not None:
        plans = {name: part_of(plan, options.only) for name, plan in plans.items()}
    if not options.print_only:
        if options.jobs > 1:
            status = _run_jobs(options, plans, overrides, ranks, folder, say)
        for plan in plans.values():
            status = status or (run_table(plan, ranks, say) if options.jobs == 1 else 0)
    if ranks.rank != 0 or options.only is not None:
        return status
    for name, plan in plans.items():
        _compare(name, tables[name], budget, plan, folder, options)
    return status


def _run_jobs(options, plans, overrides: list[str], ranks, folder: Path, say) -> int:
    """Run what is left of the tables, a process a part; return 0 or 75."""
    from ds_moe_mtl.ranks.jobs import run_jobs
    from ds_moe_mtl.studies.tables.runs import table_jobs

    def command(table: str, part: str) -> list[str]:
        output = str(options.output.absolute())
        asked = ["--budget", options.budget, "--output", output, "--only", part]
        return ["reproduce", table, *asked, *overrides]

    return run_jobs(table_jobs(plans, command, ranks, say), options.jobs, folder / "logs", say)


def _compare(name: str, table, budget, plan, folder: Path, options) -> None:
    """Write a table's comparison and its picture into its folder, and print it."""
    from ds_moe_mtl.studies.tables.chart import draw_comparison
    from ds_moe_mtl.studies.tables.compare import compare, render
    from ds_moe_mtl.studies.tables.runs import collect
    from ds_moe_mtl.training.run_folder import write_json

    scores = collect(plan)
    text = render(table, budget, table.stand_in.get(options.budget), scores)
    facts = {
        "table": name,
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
        (folder / f"{name}.md").write_text(text)
        write_json(folder / f"{name}.json", facts)
        draw_comparison(table, scores, folder / f"{name}.png")
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"\n{text}")
        print(f"{len(scores)} of {len(plan.cells)} cells done; {folder / name}.md")
