"""ds-moe-mtl study: a queue of runs, a line of evidence each, and what the lines say."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import PROGRAM, Parser, answer, count
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _Study:
    """What the command line asks for. run, parent: of a process that the queue has started."""

    name: str | None
    overrides: tuple[str, ...]
    jobs: int
    only: tuple[str, ...]
    list: bool
    report: bool
    output: Path | None
    runs: Path | None
    nice: int
    keep_models: bool
    run: str | None
    parent: int | None


def main(arguments: Sequence[str]) -> int:
    """Run, list or report a study, and return the exit status."""
    parser = Parser(
        "study",
        "Runs (or resumes) the runs of a study, several at a time and with the least priority, and "
        "appends a line to docs/evidence/NAME.jsonl as each run ends.",
        "ds-moe-mtl study own_six --jobs 2 data.root=DATA",
    )
    parser.add_argument(
        "name", nargs="?", help="one of ds_configs/studies (--list lists them), or a YAML's path"
    )
    parser.add_argument("overrides", nargs="*", help="section.key=value, for every run")
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time, a thread each (1)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="runs whose names begin so, as tune/x1 or 'screen/*/mt_dense'; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="run nothing, list the runs")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, make tables and plots of the lines"
    )
    parser.add_argument("--output", type=Path, help="the lines; docs/evidence/NAME.jsonl")
    parser.add_argument("--runs", type=Path, help="the run folders; runs/studies/NAME")
    parser.add_argument("--nice", type=int, default=19, help="of the runs; 19: the least priority")
    parser.add_argument("--keep-models", action="store_true", help="do not drop trained models")
    # What a queue starts its own runs with: one run, that ends with the process named.
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    asked = parser.request(_Study, arguments)
    return answer(lambda: _study(asked))


def _study(asked: _Study) -> int:
    from ds_moe_mtl.studies.evidence.schema import key_of, load_study, shipped_studies

    if asked.name is None:
        if not asked.list:
            raise UserError(
                f"no study is named; allowed: {', '.join(shipped_studies())}, or a YAML"
            )
        for name in shipped_studies():
            print(f"{name:<18}{load_study(name)[1].about}")
        return 0
    stray = [item for item in asked.overrides if "=" not in item]
    if stray:
        raise UserError(f"command line: {stray[0]!r}; allowed: one study, then section.key=value")
    name, study = load_study(asked.name)
    output = asked.output or Path(study.output or f"docs/evidence/{name}.jsonl")
    runs = asked.runs or Path("runs/studies") / name
    if asked.report:
        from ds_moe_mtl.studies.evidence.report import write_report

        for path in write_report(output):
            print(path)
        return 0
    from ds_moe_mtl.studies.evidence.queue import Place, describe_plan, run_one, run_study
    from ds_moe_mtl.studies.evidence.runs import StudyRun

    own = asked.overrides
    for item in own:
        key = key_of(item)
        if key in ("run.seed", "run.dir"):
            what = "seeds are those of its stages" if key == "run.seed" else "folders are --runs"
            raise UserError(f"command line: {item}: a study's {what}; allowed: another key")
    place = Place(name, study, output.absolute(), runs.absolute(), own, asked.keep_models)
    if asked.list:
        describe_plan(place, asked.only, print)
        return 0
    if asked.run is not None:
        from ds_moe_mtl.ranks.orphan import end_with_parent
        from ds_moe_mtl.ranks.rendezvous import rendezvous

        if asked.parent is not None and not end_with_parent(asked.parent):
            raise UserError(f"process {asked.parent}, which started this run, has ended")
        _settle_accelerator()
        return run_one(place, StudyRun.from_json(asked.run), rendezvous(os.environ), _say)

    def arguments(run: StudyRun) -> list[str]:
        where = ["--output", str(place.output), "--runs", str(place.runs)]
        keep = ["--keep-models"] * asked.keep_models
        its = ["--run", run.to_json(), "--parent", str(os.getpid())]
        return ["study", asked.name, *where, *keep, *its, *own]

    return run_study(place, asked.jobs, asked.only, PROGRAM, arguments, _say, asked.nice)


def _say(line: str) -> None:
    print(line, flush=True, file=sys.stdout)


def _settle_accelerator() -> None:
    """Tell DeepSpeed what it runs on; it guesses otherwise, and warns of its guess."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
