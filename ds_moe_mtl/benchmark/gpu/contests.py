"""Part: dense and sparse steps of one shape by variant, each a contest of `ds-moe-mtl bench`."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ds_moe_mtl.benchmark.gpu.measured import (
    CARD,
    MIXTURE,
    REHEARSAL,
    SHIPPED,
    measured_config,
    measured_shape,
    start_here,
)
from ds_moe_mtl.benchmark.gpu.timing import spread
from ds_moe_mtl.benchmark.gpu.variants import DEFAULT, variants_of
from ds_moe_mtl.benchmark.throughput import contest
from ds_moe_mtl.config import UserError

SYSTEMS = ("mt_dense", "mt_tag")
TITLES = {"model": "forward + backward", "step": "whole step"}
COLUMNS = [
    "variant",
    "system",
    "ms",
    "quartiles",
    "/ dense",
    "examples/s",
    "of the peak",
    "of a product",
    "parts, ms",
]


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return each variant's contest, and tables of them all; a variant that is refused says why."""
    here = start_here()
    rounds = 5 if request["gpu"] else 2
    found: dict = {"contests": {}, "refused": {}, "tables": []}
    if request["before"] is not None:
        found["contests"]["before"] = _earlier(request, rounds)
        found["tables"] = tables_of(found)
        tell(found)
    for name, overrides in variants_of(request).items():
        try:
            config = measured_config(request, overrides)
            shape = measured_shape(request)
            found["contests"][name] = contest(
                config, here.ranks, here.device, SYSTEMS, rounds, "wall", shape, None
            )
        except UserError as error:
            if name == DEFAULT:
                raise
            found["refused"][name] = str(error)
        found["tables"] = tables_of(found)
        tell(found)
        gc.collect()  # an engine's circles hold its weights
        if here.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def tables_of(found: dict) -> list[dict]:
    """Return the contests' rows as tables, by what was timed."""
    tables = []
    for part, title in TITLES.items():
        rows = [
            [name, system, *_cells(row)]
            for name, result in found["contests"].items()
            for system, row in result.get(part, {}).items()
        ]
        if rows:
            shapes = {
                f"{result['encoder']}, {result['tokens_a_rank']:,.0f} tokens"
                for result in found["contests"].values()
            }
            named = f"{title} ({'; '.join(sorted(shapes))})"
            tables.append({"title": named, "columns": COLUMNS, "rows": rows})
    if found["refused"]:
        rows = [list(item) for item in found["refused"].items()]
        tables.append({"title": "refused", "columns": ["variant", "why"], "rows": rows})
    return tables


def _cells(row: dict) -> list:
    parts = ", ".join(
        f"{key.removesuffix('_ms')} {value:.1f}"
        for key, value in row.items()
        if key.endswith("_ms") and isinstance(value, float)
    )
    rates = [row.get("mfu") or "", row["utilisation"]]
    quartiles = spread(*row["quartiles_ms"])
    return [row["ms"], quartiles, row["ratio"], row["examples_per_s"], *rates, parts]


def _earlier(request: dict, rounds: int) -> dict:
    """Return the contest as an earlier version of the repository runs it, in that version's code.

    Raises RuntimeError with its last line where it fails.
    """
    folder = Path(request["before"])
    has_data = any(text.startswith("data.root=") for text in request["overrides"])
    ours = CARD if request["gpu"] else REHEARSAL
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "bench.json"
        command = [sys.executable, "-m", "ds_moe_mtl", "bench", MIXTURE if has_data else SHIPPED]
        command += [*ours, *request["overrides"], "--rounds", str(rounds)]
        command += ["--only", ",".join(SYSTEMS), "--shape", request["shape"]]
        command += ["--output", str(output)]
        sources = os.pathsep.join([str(folder), str(folder / "kernels")])
        run = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": sources},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            lines = (run.stderr + run.stdout).strip().splitlines() or ["nothing was printed"]
            raise RuntimeError(f"{folder}: bench ended with status {run.returncode}: {lines[-1]}")
        return json.loads(output.read_text())[0]
