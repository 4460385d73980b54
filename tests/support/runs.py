"""Folders of runs that were never trained: rows, predictions, results and routes made up."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ds_moe_mtl.evaluation.predictions import TaskPredictions, write_predictions


def write_run(
    folder: Path,
    tasks: Sequence[str],
    steps: int = 100,
    every: int = 10,
    layers: int = 2,
    experts: int = 3,
    seed: int = 0,
    kind: str = "mt_tag",
    rows: int = 40,
    classes: Sequence[str] = ("no", "yes"),
    notes: Sequence[str] = (),
) -> Path:
    """Write what a finished run over classification tasks leaves, but for its model and data.

    The dev rows are the same whatever the seed. Returns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    sparse = kind == "mt_tag"
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(every, steps + 1, every):
            row = {"step": step, "lr": 1e-4, "grad_norm": 1.0, "tokens_per_s": 900.0}
            row |= {f"loss/{task}": 1 / step + float(draw.random()) for task in tasks}
            row["loss"] = float(np.mean([row[f"loss/{task}"] for task in tasks]))
            if step * 2 > steps:
                row |= {f"dev/{task}": 50 + float(draw.random()) for task in tasks}
            loads = draw.dirichlet(np.ones(experts), size=layers)
            for layer, expert in np.ndindex(layers if sparse else 0, experts):
                row[f"load/{layer + 1}/{expert + 1}"] = round(float(loads[layer, expert]), 4)
            file.write(json.dumps(row) + "\n")
    fixed = np.random.default_rng(99)
    predictions = {task: _answers(draw, fixed, rows, tuple(classes)) for task in tasks}
    write_predictions(folder, predictions)
    scores = {
        task: {"metric": "accuracy", "value": _accuracy(of), "examples": rows}
        for task, of in predictions.items()
    }
    about = {"steps": steps, "best_step": None, "model_kind": kind, "seed": seed}
    about |= {"encoder": {"name": "an encoder", "sha256": "e"}, "notes": list(notes)}
    data = {task: {"dev": "d", "classes": list(classes), "examples": 7} for task in tasks}
    results = {"tasks": scores, **about, "data": data}
    (folder / "results.json").write_text(json.dumps(results))
    if sparse:
        shares = {task: draw.dirichlet(np.ones(experts), size=layers).tolist() for task in tasks}
        (folder / "routes.json").write_text(json.dumps({"tasks": list(tasks), "shares": shares}))
    return folder


def _answers(draw, fixed, rows: int, classes: tuple[str, ...]) -> TaskPredictions:
    labels = fixed.integers(len(classes), size=rows)
    logits = draw.normal(size=(rows, len(classes)))
    logits[np.arange(rows), labels] += 0.7
    logits = (logits - logits.max(axis=1, keepdims=True)).astype(np.float16)
    return TaskPredictions(
        "classification",
        "accuracy",
        classes,
        logits,
        labels.astype(np.float32),
        np.arange(rows, dtype=np.int32),
        np.zeros(rows, np.int8),
        fixed.integers(2**32, size=rows, dtype=np.uint32),
    )


def _accuracy(task: TaskPredictions) -> float:
    return 100 * float((task.outputs.argmax(axis=1) == task.labels).mean())
