"""The tiny runs whose first losses are golden: what each trains, and what is kept of it.

They go the users' way: a YAML, `train.py`, and what the run folder holds afterwards. Nothing here
reads the package's insides, so that a change of the tree leaves the record as it is.

    python -m tests.golden.runs        writes tests/golden/losses/*.json anew

A change of a recorded number needs a line in CHANGELOG.md.
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from tests.support.bart import write_bart
from tests.support.gym import write_gym
from tests.support.launch import ROOT, launch, start
from tests.support.tiny import write_tiny

LOSSES = Path(__file__).resolve().parent / "losses"
STEPS = 20
GYM = ["gym-glue-sst2", "gym-emo", "gym-quarel", "gym-glue-rte"]
ROUTER = {"vector_size": 8, "hidden": 8, "temperature": 1.0, "clip": 0.5}

Sections = Mapping[str, Mapping[str, object] | list]
KINDS: dict[str, Sections] = {
    "single": {"model": {"kind": "single"}},
    "mt_dense": {"model": {"kind": "mt_dense"}},
    "mt_switch": {"model": {"kind": "mt_switch"}, "moe": {"gate_scale": "preserve"}},
    "mt_tag_paper": {"model": {"kind": "mt_tag"}, "moe": {"gate_scale": "paper"}},
    "mt_tag_preserve": {"model": {"kind": "mt_tag"}, "moe": {"gate_scale": "preserve"}},
    "task_moe": {"model": {"kind": "task_moe"}, "router": ROUTER, "tasks": GYM},
    "bart": {
        "model": {"kind": "task_moe", "encoder": "bart"},
        "router": ROUTER,
        "tasks": [*GYM, "gym-web_questions"],
    },
}
"""Runs of one process, as they differ from `_document`."""

TWO_RANKS: dict[str, Sections] = {
    "mt_tag_ep2": {
        "model": {"kind": "mt_tag"},
        "moe": {"gate_scale": "preserve", "ep_size": 2},
    }
}
"""Runs of two ranks that share one set of experts."""

PRECISIONS = ("fp32", "bf16")
NAMES = [f"{kind}_{precision}" for kind in (*KINDS, *TWO_RANKS) for precision in PRECISIONS]


def processor() -> str:
    """Return what the last bits of a product depend on: processor, its extensions, torch."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = [platform.machine()]
    for key in ("model name", "cpu family", "model\t"):
        found = next((line for line in lines if line.startswith(key)), "")
        facts.append(found.partition(":")[2].strip())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    facts += [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([*facts, f"torch {torch.__version__.partition('+')[0]}"])


def train_all(folder: Path) -> dict[str, dict]:
    """Train every golden run below `folder` and return its record by name."""
    write_tiny(folder)
    write_gym(folder)
    write_bart(folder / "bart")
    each = [ROOT / "tests/support/train_each.py", *_write(folder, KINDS)]
    with start(each, 1, "fork") as alone:
        for path in _write(folder, TWO_RANKS):
            together = launch([ROOT / "train.py", path], 2, "fork", time_limit=300)
            assert together.returncode == 0, together.text
        ended = alone.wait(600)
    assert ended.returncode == 0, ended.text
    return {name: record(folder / name) for name in NAMES}


def record(run: Path) -> dict:
    """Return {"loss", "grad_norm": a list each, "weights": a hash, "values": results} of a run.

    Of a run of single-task models: by task, under "tasks".
    """
    parts = sorted(path.parent for path in run.glob("*/metrics.jsonl"))
    if parts:
        return {"tasks": {part.name: record(part) for part in parts}}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    return {
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "weights": weights_hash(run / "model" / "model.safetensors"),
        "values": {name: task["value"] for name, task in results["tasks"].items()},
    }


def weights_hash(path: Path) -> str:
    """Return a hash of a safetensors file's tensors by name: not of their order in the file."""
    import torch
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _write(folder: Path, kinds: Mapping[str, Sections]) -> Iterable[Path]:
    """Write the YAML of every run and precision; return the files."""
    files = []
    for kind, sections in kinds.items():
        for precision in PRECISIONS:
            path = folder / f"{kind}_{precision}.yaml"
            path.write_text(yaml.safe_dump(_document(folder, path.stem, precision, sections)))
            files.append(path)
    return files


def _document(folder: Path, name: str, precision: str, sections: Sections) -> dict:
    document: dict = {
        "run": {"dir": str(folder / name)},
        "data": {"root": str(folder), "cache": str(folder / "cache")},
        "tasks": json.loads((folder / "tasks.json").read_text()),
        "model": {"encoder": "encoder", "dropout": 0.1},
        "train": {
            **{"steps": STEPS, "batch_size": 8, "lr": 1e-3, "log_every": 1, "limit_dev": 8},
            **{"precision": precision, "keep_checkpoints": 0},
        },
    }
    for key, section in sections.items():
        document[key] = {**document.get(key, {}), **section} if key != "tasks" else section
    document["model"]["encoder"] = str(folder / document["model"]["encoder"])
    return document


def main() -> None:
    """Write the record of every run beside this file."""
    LOSSES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, found in train_all(Path(folder)).items():
            text = json.dumps({"processor": processor(), **found}, indent=1)
            (LOSSES / f"{name}.json").write_text(text + "\n")
            print(name)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
