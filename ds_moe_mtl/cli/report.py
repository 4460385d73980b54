"""ds-moe-mtl report: one or several runs as one HTML page, with a picture of the first's course."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count
from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import write_text

PAGE = "report.html"
SUFFIX = ".html"


@dataclass(frozen=True)
class _Report:
    """Whose page is made. output: an HTML file; None: in the first run's folder."""

    folders: tuple[Path, ...]
    output: Path | None
    features: Path | None
    experts: bool
    rows: int
    no_data: bool
    json: bool


def main(arguments: Sequence[str]) -> int:
    """Write the page and the picture beside it, print their paths and return the exit status."""
    parser = Parser(
        "report",
        "Makes one HTML page of runs, finished or not: scores with intervals, curves, mistakes, "
        "routes and what experts are worth. The first run is what others are compared to. Beside "
        "the page lies a picture (PNG) of the first run's losses, dev scores and expert loads.",
        "ds-moe-mtl report runs/glue_small_mttag_minilm runs/glue_small_dense_minilm",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN", help="a run's folder; at most 8"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"an HTML file; default: {PAGE} in the first"
    )
    parser.add_argument(
        "--experts",
        action="store_true",
        help="also measure each task's dev loss with each expert disabled; says how long it takes "
        "(one pass over --rows dev rows of each task and expert), and keeps the figures",
    )
    parser.add_argument("--rows", type=count, default=64, help="dev rows a task for --experts (64)")
    parser.add_argument(
        "--features", type=Path, metavar="CSV", help="features of tasks: a column task, and others"
    )
    parser.add_argument(
        "--no-data", action="store_true", help="what is stored alone: no texts, no model is loaded"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    asked = parser.request(_Report, arguments)
    return answer(lambda: _report(asked))


def _report(asked: _Report) -> int:
    _check(asked)
    from ds_moe_mtl.analysis.page.page import MOST_RUNS, Options, make_page
    from ds_moe_mtl.analysis.page.stored import read_run
    from ds_moe_mtl.studies.scoreboard import Scored, scoreboard

    if len(asked.folders) > MOST_RUNS:
        raise UserError(f"{len(asked.folders)} runs; allowed: at most {MOST_RUNS} on a page")
    runs = [read_run(folder) for folder in asked.folders]
    board = scoreboard(
        [run.name for run in runs], [Scored(run.results, run.predictions) for run in runs]
    )
    options = Options(asked.features, asked.experts, asked.rows, not asked.no_data, _progress)
    made = make_page(runs, board, options)
    page = asked.output or asked.folders[0] / PAGE
    write_text(page, made.html)
    first = made.numbers["runs"][0]
    picture = _draw(runs[0], page.with_suffix(".png"))
    if asked.json:
        numbers = {"page": str(page), "picture": picture, "last": first["last"]}
        print(json.dumps({**numbers, "balance": first["balance"], **made.numbers}))
        return 0
    _print_last(first)
    print(f"report: {page}")
    if picture is not None:
        print(f"picture: {picture}")
    return 0


def _check(asked: _Report) -> None:
    """Raise UserError for options that do not go together."""
    if asked.output is not None and asked.output.suffix != SUFFIX:
        raise UserError(f"--output {asked.output}; allowed: a file that ends in {SUFFIX}")
    if asked.no_data and asked.experts:
        raise UserError("--no-data and --experts; allowed: one of them (experts need the data)")
    if len(set(map(Path.resolve, asked.folders))) < len(asked.folders):
        raise UserError("a run is named twice; allowed: each run once")


def _draw(run, picture: Path) -> str | None:
    """Draw the course of a run of one network; single-task runs have none in common."""
    from dataclasses import replace

    from ds_moe_mtl.analysis.report import draw_report

    part = run.parts[0]
    course, loads_SLE = part.course, part.course.loads_SLE
    if len(run.parts) > 1 or not course.series:
        return None
    kind = f", {run.kind}" if run.kind else ""
    numbers = None if loads_SLE is None else part.sparse_layers(loads_SLE.shape[1])[0]
    draw_report(replace(course, title=f"{run.name}{kind}: {run.state}"), picture, numbers)
    return str(picture)


def _print_last(first: dict) -> None:
    for key, value in first["last"].items():
        if key == "loss" or key.startswith("dev/"):
            print(f"{key:<20}{value:>10.3f}")
    balance = first["balance"]
    if balance:
        print(
            f"expert load at step {balance['step']}: {balance['least']:.0f}% to "
            f"{balance['largest']:.0f}% of a layer's tokens, entropy {balance['entropy']:.2f} of 1"
        )


def _progress(line: str) -> None:
    print(line, file=sys.stderr)
