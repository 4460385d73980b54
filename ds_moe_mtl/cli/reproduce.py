"""ds-moe-mtl reproduce: the paper's tables, run and printed beside the paper's."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import PROGRAM, Parser, answer
from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import write_text


@dataclass(frozen=True)
class _Reproduction:
    """What is run and printed. words: tables, and section.key=value for all runs, in any order."""

    words: tuple[str, ...]
    budget: str
    output: Path
    jobs: int
    only: str | None
    print_only: bool
    json: bool

    def __post_init__(self) -> None:
        """Raise UserError for no table, and for what does not go together."""
        if not self.tables:
            raise UserError("no table is named; allowed: table1 to table8, one or several")
        if self.jobs < 1:
            raise UserError(f"--jobs: {self.jobs}; allowed: at least 1")
        if self.only is not None and len(self.tables) > 1:
            raise UserError(f"--only with {len(self.tables)} tables; allowed: one table")

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables' names, each once."""
        return tuple(dict.fromkeys(word for word in self.words if "=" not in word))

    @property
    def overrides(self) -> tuple[str, ...]:
        """The words that set a key."""
        return tuple(word for word in self.words if "=" in word)

    def arguments(self, table: str, part: str) -> list[str]:
        """Return this command's arguments for one part of a table."""
        output = str(self.output.absolute())
        asked = ["--budget", self.budget, "--output", output, "--only", part]
        return ["reproduce", table, *asked, *self.overrides]


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
    return answer(lambda: _reproduce(parser.request(_Reproduction, arguments)))


def _reproduce(asked: _Reproduction) -> int:
    from ds_moe_mtl.studies.tables.schema import load_budgets, load_mixtures, load_table

    tables = {name: load_table(name) for name in asked.tables}
    budgets = load_budgets()
    if asked.budget not in budgets:
        raise UserError(f"--budget: {asked.budget!r}; allowed: {', '.join(budgets)}")
    budget, mixtures = budgets[asked.budget], load_mixtures()
    from ds_moe_mtl.engine.engine import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # otherwise DeepSpeed warns of its guess
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.studies.tables.runs import part_of, plan_table

    ranks = rendezvous(os.environ)
    if asked.jobs > 1 and ranks.world_size > 1:
        raise UserError(f"--jobs {asked.jobs} on {ranks.world_size} ranks; allowed: one process")
    folder = asked.output.absolute() / asked.budget

    def say(line: str) -> None:
        if ranks.rank == 0:
            print(line, flush=True, file=sys.stderr if asked.json else sys.stdout)

    plans = {
        name: plan_table(name, table, asked.budget, budget, mixtures, folder, asked.overrides)
        for name, table in tables.items()
    }
    if asked.only is not None:
        plans = {name: part_of(plan, asked.only) for name, plan in plans.items()}
    status = 0 if asked.print_only else _run(asked, plans, ranks, folder, say)
    if ranks.rank != 0 or asked.only is not None:
        return status
    for name, plan in plans.items():
        _compare(name, tables[name], budget, plan, folder, asked)
    return status


def _run(asked: _Reproduction, plans, ranks, folder: Path, say) -> int:
    """Run what is left of the tables, here or in a process a part; return 0 or 75."""
    from ds_moe_mtl.ranks.jobs import run_jobs
    from ds_moe_mtl.studies.tables.runs import run_table, table_jobs

    if asked.jobs > 1:
        jobs = table_jobs(plans, asked.arguments, ranks, say)
        return run_jobs(jobs, PROGRAM, asked.jobs, folder / "logs", say)
    for plan in plans.values():
        status = run_table(plan, ranks, say)
        if status:
            return status
    return 0


def _compare(name: str, table, budget, plan, folder: Path, asked: _Reproduction) -> None:
    """Write a table's comparison and its picture into its folder, and print it."""
    from ds_moe_mtl.config.files import write_json
    from ds_moe_mtl.studies.tables.chart import draw_comparison
    from ds_moe_mtl.studies.tables.compare import compare, render
    from ds_moe_mtl.studies.tables.runs import collect

    scores = collect(plan)
    text = render(table, budget, table.stand_in.get(asked.budget), scores)
    facts = {
        "table": name,
        "budget": asked.budget,
        "done": len(scores),
        "cells": len(plan.cells),
        "rows": compare(table, scores),
        "scores": [
            {"row": row, "column": column, **score} for (row, column), score in scores.items()
        ],
    }
    if scores:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{name}.md", text)
        write_json(folder / f"{name}.json", facts)
        draw_comparison(table, scores, folder / f"{name}.png")
    if asked.json:
        print(json.dumps(facts))
    else:
        print(f"\n{text}")
        print(f"{len(scores)} of {len(plan.cells)} cells done; {folder / name}.md")
