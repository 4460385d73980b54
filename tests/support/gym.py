"""A tiny few-shot gym in the layout of the real one, from the tiny tokenizer's words."""

import random
from pathlib import Path

from tests.support.tiny import COLOURS, WORDS

TASKS = ("glue-sst2", "emo", "quarel", "glue-rte", "ai2_arc", "web_questions")
"""Three upstream tasks, two unseen ones (CrossFit's random partition puts glue-rte upstream), and
one with free-form answers."""


def write_gym(root: Path, rows: int = 8, test_rows: int = 12, seed: int = 0) -> Path:
    """Write fewshot.parquet and test.parquet below root/fewshot_gym and return root.

    The answer is the option whose word stands in the input.
    """
    import pyarrow
    import pyarrow.parquet

    draw = random.Random(seed)
    few, test = [], []
    for task in TASKS:
        for sample in (13, 21, 42, 87, 100):
            for split in ("train", "dev"):
                few += [
                    {"task": task, "seed": sample, "split": split, **_row(task, draw)}
                    for _ in range(rows)
                ]
        test += [{"task": task, **_row(task, draw)} for _ in range(test_rows)]
    folder = root / "fewshot_gym"
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("fewshot", few), ("test", test)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet")
    return root


def _row(task: str, draw: random.Random) -> dict:
    options = draw.sample(WORDS[3:], 3) if task in ("quarel", "ai2_arc") else list(COLOURS)
    answer = draw.choice(options)
    text = " ".join([*draw.choices(WORDS[3:], k=draw.randint(3, 9)), answer])
    return {
        "input": text,
        "output": answer,
        "options": [] if task == "web_questions" else options,
    }
