"""A local data root of a few made-up rows in the layout of the paper's sets, for smoke runs."""

import random
from pathlib import Path

from ds_moe_mtl.tasks import get_task
from tests.support.tiny import WORDS

TASKS = ("rte", "sst2", "scitail", "imdb")  # what the smoke budget runs


def write_paper_data(root: Path, tasks: tuple[str, ...] = TASKS, rows: int = 40) -> Path:
    """Write <set>/<split>.parquet of every task with random words, and return the root."""
    import pyarrow
    import pyarrow.parquet

    draw = random.Random(0)
    for name in tasks:
        spec = get_task(name)
        for split in (spec.train_split, *spec.dev_splits):
            columns = {
                column: [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(rows)]
                for column in spec.text
            }
            columns[spec.label] = [number % len(spec.labels) for number in range(rows)]
            path = root / spec.folder / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return root
