"""A small task of every kind that an encoder takes, over the words of tests/support/tiny.py."""

import json
import random
from pathlib import Path

from tests.support.tiny import COLOURS, WORDS

ANIMALS = ("cat", "dog", "bird", "fish")


def write_kinds(folder: Path, rows: int = 40, seed: int = 0) -> list[dict]:
    """Write a JSON-lines file a task and return the tasks' rows for `tasks`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    tasks = []
    for name, make, keys in (
        ("class", _class, {"text": "text", "label": "label", "metrics": ["macro_f1", "accuracy"]}),
        ("score", _score, {"text": "text", "label": "label"}),
        ("labels", _labels, {"text": "text", "label": "label"}),
        ("columns", _columns, {"text": "text", "label": ["red", "cat"], "metric": "lrap"}),
        ("tags", _tags, {"text": "words", "label": "tags"}),
        ("answer", _answer, {"text": ["question", "text"], "label": "label"}),
        ("options", _options, {"text": "text", "label": "label", "options": "choices"}),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(make(draw, number))}\n" for number in range(rows)))
        tasks.append({"name": name, "train": str(path), "dev_fraction": 0.4, **keys})
    return tasks


def _words(draw: random.Random) -> list[str]:
    return draw.choices(WORDS, k=draw.randint(3, 9))


def _class(draw: random.Random, number: int) -> dict:
    words = _words(draw)
    kinds = [word for word in words if word in (*COLOURS, *ANIMALS)]
    label = "none" if not kinds else "colour" if kinds[0] in COLOURS else "animal"
    return {"text": " ".join(words), "label": label}


def _score(draw: random.Random, number: int) -> dict:
    words = _words(draw)
    return {"text": " ".join(words), "label": 0.5 * sum(word in ANIMALS for word in words)}


def _labels(draw: random.Random, number: int) -> dict:
    words = _words(draw)
    return {"text": " ".join(words), "label": [w for w in (*COLOURS, *ANIMALS) if w in words]}


def _columns(draw: random.Random, number: int) -> dict:
    words = _words(draw)
    return {"text": " ".join(words), "red": "red" in words, "cat": "cat" in words}


def _tags(draw: random.Random, number: int) -> dict:
    words, tags = _words(draw), []
    for word in words:
        kind = "COLOUR" if word in COLOURS else "ANIMAL" if word in ANIMALS else None
        inside = tags and kind and tags[-1][2:] == kind
        tags.append(f"{'I' if inside else 'B'}-{kind}" if kind else "O")
    return {"words": words, "tags": tags}


def _answer(draw: random.Random, number: int) -> dict:
    words = draw.sample([word for word in WORDS if len(word) > 3], k=6)
    return {"question": "not here", "text": " ".join(words), "label": draw.choice(words)}


def _options(draw: random.Random, number: int) -> dict:
    choices = draw.sample(ANIMALS, k=3)
    return {"text": " ".join(_words(draw)), "choices": choices, "label": draw.choice(choices)}
