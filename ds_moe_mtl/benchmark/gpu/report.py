"""Runs the parts one after another under one budget; report.json and report.md after each of them.

Standard library alone: a machine where a part's packages lack still gets the other parts.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.benchmark.gpu.parts import HOME, Part
from ds_moe_mtl.benchmark.gpu.processes import run_limited
from ds_moe_mtl.benchmark.gpu.table import NO_GPU, markdown

REPOSITORY = Path(__file__).resolve().parents[3]
LEAST = 5.0
"""Seconds under which no part is begun."""
RESERVE = 3.0
"""Seconds of the budget that are kept for the last writing."""
LINES_KEPT = 25
"""Of what a part printed, where it did not end well."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    budget: seconds for all parts. overrides: of the measured run, section.key=value. before: a
    folder with an earlier version of this repository, measured beside this one; None: none.
    gpu: whether a card is there; without one the parts are rehearsed with toy shapes.
    """

    out: Path
    budget: float
    gpu: bool
    overrides: tuple[str, ...] = ()
    before: str | None = None


def run_parts(request: Request, parts: Sequence[Part], say: Callable[[str], None]) -> dict:
    """Run the parts in their order and return the report; it is written after each part.

    While a part runs, what it has found so far is in <part>.json beside the report.
    """
    request.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    report: dict = {
        "command": sys.argv,
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "gpu": request.gpu,
        "note": None if request.gpu else NO_GPU,
        "budget_s": request.budget,
        "overrides": list(request.overrides),
        "parts": [],
    }
    if not request.gpu:
        say(NO_GPU)
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            left = request.budget - RESERVE - (time.monotonic() - began)
            row = {"name": part.name, "about": part.about}
            if left < LEAST:
                row |= {"status": "not begun", "reason": "the budget is spent", "seconds": 0.0}
            else:
                row |= _run(request, part, min(part.seconds, left), scratch)
            report["parts"].append(row)
            report["seconds"] = time.monotonic() - began
            _write(request.out, report)
            reason = f": {row['reason']}" if row.get("reason") else ""
            say(f"{report['seconds']:6.1f} s  {part.name}: {row['status']}{reason}")
    return report


def _run(request: Request, part: Part, seconds: float, scratch: str) -> dict:
    """Run one part and return its row; scratch: a folder that all parts share."""
    answer, log = request.out / f"{part.name}.json", request.out / f"{part.name}.log"
    answer.unlink(missing_ok=True)
    asked = {
        "module": part.module,
        "gpu": request.gpu,
        "seconds": seconds,
        "overrides": list(request.overrides),
        "before": request.before,
        "scratch": scratch,
        **part.options,
    }
    began = time.monotonic()
    command = [sys.executable, "-m", f"{HOME}.worker", json.dumps(asked), str(answer)]
    status = run_limited(command, seconds, part_environment(request.gpu), log)
    row = {"status": "done", "seconds": time.monotonic() - began, "limit_s": seconds}
    try:
        told = json.loads(answer.read_text())
    except (OSError, ValueError):
        told = {}
    row["found"] = told.get("found", {})
    if status is None:
        row |= {"status": "cut", "reason": f"it reached its limit, {seconds:.0f} s"}
    elif status != 0:
        row |= {"status": "failed", "reason": f"its process ended with status {status}"}
    row |= {key: told[key] for key in ("status", "reason") if status is not None and key in told}
    if row["status"] != "done":
        row["printed"] = log.read_text(errors="replace").splitlines()[-LINES_KEPT:]
    answer.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    return row


def part_environment(gpu: bool) -> Mapping[str, str]:
    """Return a part's environment: this checkout's packages, no hub, Triton's interpreter where
    there is no card."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), str(REPOSITORY / "kernels"), *filter(None, sys.path)]
        ),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_BUILD_OPS": "0",
    }
    if not gpu:
        environ["TRITON_INTERPRET"] = "1"
    return environ


def _write(out: Path, report: dict) -> None:
    """Replace report.json and report.md as a whole: a kill leaves the ones before."""
    for name, text in (
        ("report.json", json.dumps(report, indent=1) + "\n"),
        ("report.md", markdown(report)),
    ):
        new = out / f"{name}.new"
        new.write_text(text)
        new.replace(out / name)
