"""Answers of an exported folder by transformers' pipeline, where this package cannot be imported.

Run as `python -I -S outside.py PACKAGES FOLDER TASK CSV COLUMN`; prints a JSON list of
{"label", "score"}.
"""

import csv
import importlib.util
import json
import sys


def main(folder: str, task: str, table: str, column: str) -> None:
    """Print what the pipeline answers for each row of a table."""
    if importlib.util.find_spec("ds_moe_mtl") is not None:
        sys.exit("the package can be imported")
    from transformers import pipeline

    classify = pipeline("text-classification", model=folder, trust_remote_code=True, device="cpu")
    classify.model.set_task(task)
    with open(table, encoding="utf-8", newline="") as file:
        texts = [row[column] for row in csv.DictReader(file)]
    print(json.dumps(classify(texts, truncation=True, batch_size=16)))


if __name__ == "__main__":
    sys.path += sys.argv[1].split(":")
    main(*sys.argv[2:])
