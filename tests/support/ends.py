"""How two finished runs compare: logged rows, results and weights, bit for bit."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

SPEEDS = ("tokens_per_s", "examples_per_s", "steps_per_s", "stall", "stall_seconds")
MEMORY = ("host_memory_gib", "gpu_memory_gib")


def rows_of(run: Path) -> list[dict]:
    """Return the logged rows without speeds and memory; asserts that no step stands twice."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    return [{k: v for k, v in row.items() if k not in SPEEDS + MEMORY} for row in rows]


def differences(run: Path, expected: Path) -> list[str]:
    """Return what differs between two finished runs; empty where they are the same bit for bit."""
    found, wanted = (load_file(folder / "model/model.safetensors") for folder in (run, expected))
    faults = [
        f"weight {name}"
        for name in sorted(found.keys() | wanted.keys())
        if name not in found or name not in wanted or not torch.equal(found[name], wanted[name])
    ]
    mine, theirs = (json.loads((f / "results.json").read_text()) for f in (run, expected))
    if mine != theirs:
        faults.append("results.json")
    mine, theirs = rows_of(run), rows_of(expected)
    if len(mine) != len(theirs):
        faults.append(f"{len(mine)} logged rows, not {len(theirs)}")
    faults += [f"row of step {a['step']}" for a, b in zip(mine, theirs, strict=False) if a != b]
    return faults
