"""Part: an encoder layer's attention (four ways), residual norm and projection, at the lengths of
a batch of the measured run. PROGRAM, a benchmark of the kernels, checks and times them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[3] / "kernels" / "benchmarks" / "bench_encoder.py"
SHAPES = {"BERT-Base": (768, 64), "MiniLM": (384, 32)}
"""Width and size of a head."""
COLUMNS = ["shape", "operator", "way", "forward, ms", "forward + backward, ms", "IQR", "ratio"]


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return the program's rows by shape.

    Where the measured run's data cannot be had, the program draws lengths, and its rows say so.
    Raises ImportError where the program is not there, RuntimeError with its last line where it
    fails.
    """
    if not PROGRAM.is_file():
        raise ImportError(f"there is no {PROGRAM}")
    lengths, reason = _lengths(request)
    found: dict = {"lengths": lengths, "drawn_because": reason, "rows": [], "tables": []}
    for name, (hidden, head) in SHAPES.items() if request["gpu"] else [("toy", (32, 16))]:
        options = ["--hidden", str(hidden), "--head", str(head)]
        options += ["--device", "cuda"] if request["gpu"] else ["--device", "cpu", "--toy"]
        if lengths is not None and request["gpu"]:
            file = Path(request["scratch"]) / "lengths.json"
            file.write_text(json.dumps(lengths))
            options += ["--lengths", str(file)]
        found["rows"] += [{"shape": name} | row for row in _run(options)]
        found["tables"] = tables_of(found)
        tell(found)
    return found


def _lengths(request: dict) -> tuple[list[int] | None, str | None]:
    """Return the lengths of the run's first batch, or None and why they cannot be had."""
    try:
        from ds_moe_mtl.benchmark.gpu.measured import device_of, first_steps, measured_workload
        from ds_moe_mtl.config import UserError
    except ImportError as error:
        return None, str(error)
    try:
        workload = measured_workload(request)
    except (ImportError, UserError) as error:
        return None, str(error)
    step = first_steps(workload, device_of(request), 1, padded=False)[0]
    return [length for batch in step[0] for length in batch.lengths], None


def _run(options: list[str]) -> list[dict]:
    """Return the lines of JSON that the program prints."""
    command = [sys.executable, str(PROGRAM), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = (run.stderr + run.stdout).strip().splitlines() or ["nothing was printed"]
        raise RuntimeError(f"{PROGRAM.name} ended with status {run.returncode}: {lines[-1]}")
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def tables_of(found: dict) -> list[dict]:
    """Return the rows as a table; what did not run says why."""
    timed, cannot, titles = [], [], []
    for row in found["rows"]:
        if row["part"] == "run":
            titles.append(
                f"{row['sequences']} sequences, {row['tokens']:,} tokens, longest {row['longest']}"
                + (" (drawn)" if row["lengths"] == "drawn" else "")
            )
            continue
        named = [row["shape"], row["part"], row["name"]]
        if row.get("skipped"):
            cannot.append([*named, row["skipped"]])
        else:
            keys = ("forward_ms", "step_ms", "step_iqr_ms", "ratio")
            timed.append([*named, *(row[key] for key in keys)])
    title = "; ".join(sorted(set(titles)))
    tables = [{"title": title, "columns": COLUMNS, "rows": timed}]
    if cannot:
        columns = [*COLUMNS[:3], "why"]
        tables.append({"title": "cannot run here", "columns": columns, "rows": cannot})
    return tables
