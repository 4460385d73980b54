"""A table of many rows, predicted by the command with a tiny model: memory, rate, the same order.

    python tests/soak/many_rows.py --rows 1000000

Prints the process's peak memory after a tenth of the rows and at the end: it must not grow with
them. The answers of a sample of rows are compared with `predict`'s.
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.evaluation import MultiTaskModel  # noqa: E402
from tests.support.exported import write_model, write_source  # noqa: E402
from tests.support.launch import rank_environ  # noqa: E402
from tests.support.tiny import WORDS  # noqa: E402

EVERY = 9973  # rows between two that are compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(write_source(folder / "source"), folder / "model")
        peaks = {}
        for count in (rows // 10, rows):
            _write(folder / "rows.csv", count)
            began = time.perf_counter()
            _predict(model, folder)
            seconds = time.perf_counter() - began
            peaks[count] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"{count:,} rows: peak {peaks[count]:,.0f} MiB, {count / seconds:,.0f} rows/s")
        _compare(model, folder)


def _write(path: Path, rows: int) -> None:
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number in range(rows):
            writer.writerow([number, " ".join(draw.choices(WORDS, k=draw.randint(1, 10)))])


def _predict(model: Path, folder: Path) -> None:
    output = folder / "out.jsonl"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ds_moe_mtl", "predict", str(model), "--task", "colour"]
    command += ["--input", str(folder / "rows.csv"), "--output", str(output)]
    subprocess.run(command, env=rank_environ(), check=True)


def _compare(model: Path, folder: Path) -> None:
    texts, told = [], []
    with (folder / "out.jsonl").open() as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            assert int(row["id"]) == number, "the order changed"
            if number % EVERY == 0:
                texts.append(row["text"])
                told.append(row["predicted_colour"])
    assert MultiTaskModel.from_pretrained(model, "cpu").predict("colour", texts) == told
    print(f"{number + 1:,} rows in order; {len(told)} compared with predict: the same")


if __name__ == "__main__":
    main()
