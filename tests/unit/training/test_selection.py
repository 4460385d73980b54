"""The best epoch's model, through an early stop and an interruption."""

import json
import os
import signal
from pathlib import Path

import torch

from tests.support.launch import ROOT, run_ranks
from tests.support.tiny import tiny_config, write_tiny

ZERO1 = str(ROOT / "ds_configs/deepspeed/zero1.json")
STEPS = 12


def train_interrupted(folder: str, name: str, train: dict, stop_after: int | None) -> list[int]:
    """Return the statuses of a tiny run; a signal comes after `stop_after` steps, then a resume."""
    from ds_moe_mtl.ranks.rendezvous import rendezvous
    from ds_moe_mtl.training.train import train as run

    config = tiny_config(
        Path(folder),
        run={"dir": str(Path(folder) / name)},
        train={"steps": STEPS, "eval_every": 2, "select": "dev_score", "lr": 0.02, **train},
        deepspeed=ZERO1,
    )

    def say(line: str) -> None:
        if stop_after is not None and line.startswith(f"step {stop_after:>2}/"):
            signal.raise_signal(signal.SIGUSR1)

    ranks = rendezvous(os.environ)
    statuses = [run(config, ranks, say, last=False)]
    if stop_after is not None:
        statuses.append(run(config, ranks, lambda line: None, last=False))
    return statuses


def train_all(folder: str) -> list[list[int]]:
    """Return the statuses of every run of this file, in one process."""
    return [
        train_interrupted(folder, "whole", {}, None),
        train_interrupted(folder, "resumed", {}, 7),
        train_interrupted(folder, "early", {"patience": 2, "steps": 200}, None),
    ]


def dev_scores(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for row in rows:
        values = [value for key, value in row.items() if key.startswith("dev/")]
        if values:
            found[row["step"]] = sum(values) / len(values)
    return found


def test_the_best_model_is_kept_through_an_interruption_and_patience_ends_a_run(tmp_path):
    from safetensors.torch import load_file

    write_tiny(tmp_path)
    (statuses,) = run_ranks(train_all, str(tmp_path), ranks=1, time_limit=900)
    assert statuses == [[0], [75, 0], [0]]
    whole, resumed, early = (tmp_path / name for name in ("whole", "resumed", "early"))
    results = json.loads((whole / "results.json").read_text())
    scores = dev_scores(whole)
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    assert results["best_step"] == max(scores, key=scores.get) and results["steps"] == STEPS
    assert results["all_tasks"] == max(scores.values())

    assert json.loads((resumed / "results.json").read_text()) == results
    assert dev_scores(resumed) == scores
    one, other = (load_file(run / "model/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (resumed / "best").exists()

    ended = json.loads((early / "results.json").read_text())
    evaluated = list(dev_scores(early))
    assert evaluated[-1] == ended["steps"] < 200
    assert ended["best_step"] == evaluated[-3]  # two evaluations without a better one
