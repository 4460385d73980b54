"""ds-moe-mtl report: a run's losses, dev scores and expert loads as a picture and as numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError

PICTURE = "report.png"


@dataclass(frozen=True)
class _Report:
    """Whose course is drawn. output: a PNG; None: in the run's folder."""

    folder: Path
    output: Path | None
    json: bool


def main(arguments: Sequence[str]) -> int:
    """Write report.png into the run's folder and return the exit status."""
    parser = Parser(
        "report",
        "Draws a run's losses, dev scores and expert loads, finished or not.",
        "ds-moe-mtl report runs/glue_small_mttag_minilm",
    )
    parser.add_argument("folder", type=Path, help="a run's folder")
    parser.add_argument("--output", type=Path, help=f"a PNG file; default: {PICTURE} in the folder")
    parser.add_argument("--json", action="store_true", help="print the last numbers as JSON")
    asked = parser.request(_Report, arguments)
    return answer(lambda: _report(asked))


def _report(asked: _Report) -> int:
    from ds_moe_mtl.analysis.report import draw_report, read_course
    from ds_moe_mtl.config.files import read_json
    from ds_moe_mtl.tracking.metrics_log import read_metrics

    folder = asked.folder
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows:
        parts = sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))
        inner = f"; its runs: {', '.join(parts)}" if parts else ""
        raise UserError(f"{folder}: no metrics.jsonl with a logged step{inner}; allowed: a run")
    results = read_json(folder / "results.json")
    state = f"{rows[-1]['step']} steps" + ("" if results else ", not complete")
    kind = f", {results['model_kind']}" if results else ""
    course = read_course(rows, f"{folder.resolve().name}{kind}: {state}")
    picture = asked.output or folder / PICTURE
    draw_report(course, picture)
    last = {key: values[-1] for key, (_, values) in course.series.items()}
    balance = course.balance()
    if asked.json:
        print(json.dumps({"last": last, "balance": balance, "picture": str(picture)}))
        return 0
    for key, value in last.items():
        if key == "loss" or key.startswith("dev/"):
            print(f"{key:<20}{value:>10.3f}")
    if balance:
        print(
            f"expert load at step {balance['step']}: {balance['least']:.0f}% to "
            f"{balance['largest']:.0f}% of a layer's tokens, entropy {balance['entropy']:.2f} of 1"
        )
    print(f"report: {picture}")
    return 0
