"""ds-moe-mtl compare: is one system better than another, and by how much?"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, picture
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _Comparison:
    """What the command line asks for: the runs of both sides, and how they are shown."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    names: str | None
    plot: Path | None
    json: bool


def main(arguments: Sequence[str]) -> int:
    """Print the comparison and return the exit status."""
    parser = Parser(
        "compare",
        "Pairs runs by seed and prints the mean difference of their dev scores, left less right, "
        "with a 95% interval over seeds and dev rows, by task and for the mean.",
        "ds-moe-mtl compare runs/mttag/seed* -- runs/dense/seed* --plot difference.png",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run folders, -- between the two sides; or a study's lines and the beginning of run "
        "names, as docs/evidence/small.jsonl:final/all/mt_tag; runs of one seed whose tasks differ "
        "count as one",
    )
    parser.add_argument("--names", help="of the two sides, with a comma: MT-TaG,MT-Dense")
    parser.add_argument("--plot", type=picture, metavar="PNG", help="also draw a forest plot")
    parser.add_argument("--json", action="store_true", help="print JSON")
    # argparse takes "--" for the end of the options and drops it: the sides are parted before.
    words = list(arguments)
    split = words.index("--") if "--" in words else len(words)
    options = parser.parse_intermixed_args(words[:split])
    left = options.runs
    options = parser.parse_intermixed_args(words[split + 1 :], options)
    right = options.runs if split < len(words) else []
    asked = _Comparison(tuple(left), tuple(right), options.names, options.plot, options.json)
    return answer(lambda: _compare(asked))


def _compare(asked: _Comparison) -> int:
    if not asked.left or not asked.right:
        raise UserError("a side has no runs; allowed: RUN... -- RUN...")
    names = tuple((asked.names or "left,right").split(","))
    if len(names) != 2:
        raise UserError(f"--names {asked.names}; allowed: two, with a comma")
    from ds_moe_mtl.studies.compare import compare_runs, find_runs, render
    from ds_moe_mtl.studies.forest import draw_comparison

    comparison = compare_runs(find_runs(asked.left), find_runs(asked.right), names)
    if asked.plot is not None:
        draw_comparison(comparison, asked.plot)
        print(f"plot: {asked.plot}", file=sys.stderr)
    print(json.dumps(comparison.to_dict()) if asked.json else render(comparison))
    return 0
