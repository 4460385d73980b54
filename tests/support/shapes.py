"""Tiny tasks whose answer is more than one class: several labels, tags, an answer in a context."""

import json
import random
from pathlib import Path

from tests.support.tiny import COLOURS, WORDS

PLAIN = [word for word in WORDS if word not in COLOURS]


def write_shapes(folder: Path, rows: int = 40, seed: int = 0) -> list[dict]:
    """Write three files and return their rows for `tasks`: about, marks and which."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)

    def words(most: int) -> list[str]:
        return draw.choices(WORDS, k=draw.randint(2, most))

    about, marks, which = [], [], []
    for _ in range(rows):
        text = words(12)
        about.append({"text": " ".join(text), "colours": sorted(set(text) & set(COLOURS))})
        tokens = words(10)
        marks.append({"tokens": tokens, "tags": _tags(tokens)})
        before, after = draw.choices(PLAIN, k=draw.randint(0, 6)), draw.choices(PLAIN, k=3)
        answer = draw.choice(COLOURS)
        context = " ".join([*before, answer, *after])
        start = len(" ".join([*before, ""]))
        which.append(
            {"question": "is a cat here", "context": context, "answer": answer, "start": start}
        )
    tasks = []
    for name, table, row in (
        ("about", about, {"text": "text", "label": "colours"}),
        ("marks", marks, {"text": "tokens", "label": "tags"}),
        ("which", which, {"text": ["question", "context"], "label": "answer"}),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in table))
        tasks.append({"name": name, "train": str(path), "dev_fraction": 0.3, **row})
    tasks[-1]["answer_start"] = "start"
    return tasks


def _tags(tokens: list[str]) -> list[str]:
    """Mark colours, and what follows one as the rest of it."""
    tags = []
    for place, token in enumerate(tokens):
        follows = place > 0 and tokens[place - 1] in COLOURS
        tags.append("B-COLOUR" if token in COLOURS else "I-COLOUR" if follows else "O")
    return tags
