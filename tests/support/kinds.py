"""A tiny task of every kind that an encoder takes."""

import json
import random
from pathlib import Path

from tests.support.shapes import write_shapes
from tests.support.tiny import COLOURS, WORDS, write_data

KINDS = ("colour", "amount", "about", "marks", "which", "columns", "options")
"""Classification, regression, several labels, tags, an answer, labels as columns, options."""


def write_kinds(folder: Path, rows: int = 40, seed: int = 0) -> list[dict]:
    """Write a file a task and return the tasks' rows for `tasks`, in the order of KINDS."""
    draw = random.Random(seed)
    colour, _, amount = write_data(folder, rows, seed)
    tasks = [{**colour, "metrics": ["macro_f1", "accuracy"]}, amount]
    tasks += write_shapes(folder, rows, seed)
    for name, make, keys in (
        ("columns", _columns, {"label": ["red", "blue"], "metric": "lrap"}),
        ("options", _options, {"label": "label", "options": "choices"}),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(make(draw))}\n" for _ in range(rows)))
        tasks.append(
            {"name": name, "train": str(path), "text": "text", "dev_fraction": 0.4, **keys}
        )
    return tasks


def _columns(draw: random.Random) -> dict:
    words = draw.choices(WORDS, k=draw.randint(3, 9))
    return {"text": " ".join(words), "red": "red" in words, "blue": "blue" in words}


def _options(draw: random.Random) -> dict:
    text = " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))
    return {"text": text, "choices": draw.sample(COLOURS, k=3), "label": draw.choice(COLOURS)}
