"""`python -m ds_moe_mtl.benchmark.gpu`: the report, as `make gpu-report` runs it.

A program of its own that needs the standard library alone, as each part says what it lacks.
"""

import argparse
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

from ds_moe_mtl.benchmark.gpu.parts import PARTS
from ds_moe_mtl.benchmark.gpu.report import Request, part_environment, run_parts
from ds_moe_mtl.benchmark.gpu.table import markdown

BAD_INPUT = 2
DID_NOT_END_WELL = 1


def main(arguments: list[str]) -> int:
    """Run the report and print its table; 1 where a part failed or was cut."""
    parser = argparse.ArgumentParser(
        prog="python -m ds_moe_mtl.benchmark.gpu",
        description=__doc__.splitlines()[0],
        epilog="example: python -m ds_moe_mtl.benchmark.gpu data.root=DATA --budget 540",
        allow_abbrev=False,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("overrides", nargs="*", help="of the measured run: section.key=value")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for all parts (600)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_report"))
    parser.add_argument("--only", help=f"parts, as in machine,profile ({', '.join(names)})")
    parser.add_argument("--before", help="a folder with an earlier version of the repository")
    asked = parser.parse_intermixed_args(arguments)
    chosen = names if asked.only is None else asked.only.split(",")
    wrong = [name for name in chosen if name not in names]
    wrong += [text for text in asked.overrides if "=" not in text]
    if wrong:
        parser.error(f"{wrong[0]}: neither a part ({', '.join(names)}) nor section.key=value")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    request = Request(asked.out, asked.budget, has_gpu(), tuple(asked.overrides), asked.before)
    parts = [part for part in PARTS if part.name in chosen]
    report = run_parts(request, parts, lambda line: print(line, flush=True))
    print("\n" + markdown(report), end="")
    print(f"\nfiles: {asked.out / 'report.json'}, {asked.out / 'report.md'}")
    bad = [part["name"] for part in report["parts"] if part["status"] in ("failed", "cut")]
    return DID_NOT_END_WELL if bad else 0


def has_gpu() -> bool:
    """Return whether torch sees a card; asked in a process of its own, which leaves it free."""
    if importlib.util.find_spec("torch") is None:
        return False
    asked = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    command = [sys.executable, "-c", asked]
    return subprocess.run(command, env=part_environment(True), check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
