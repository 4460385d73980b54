"""Rows a second that a trained model labels, beside transformers' pipeline with the dense encoder.

    python -m ds_moe_mtl.benchmark.prediction --data-root DATA --rows 10000

Both have the same encoder, in float32, on as many threads, and answer the same GLUE rows in the
order of the file. The pipeline pads each of its batches to the longest text in it; it is given
several batch sizes. `predict` packs 8,192 tokens without pads. Weights of heads are drawn: they
change no time. Contestants alternate over parts of the rows; the table has medians and quartiles.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles

import torch

from ds_moe_mtl.data import read_split
from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models import HeadSpec, RoutingOptions, build_network
from ds_moe_mtl.models.pretrained import find_encoder, load_transformer, source_limits
from ds_moe_mtl.models.tokenizer import load_tokenizer
from ds_moe_mtl.tasks import TaskSpec, get_task

TASKS = ("qqp", "mnli", "qnli", "mrpc", "rte")
"""Pairs of texts, whose lengths differ most; the rows are taken from them in turn."""

PARTS = 8
Label = Callable[[Sequence[tuple[str, str]]], object]


def main() -> None:
    """Print the table, or a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data-root", required=True, help="a folder with GLUE's parquet files")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--batch-sizes", default="8,32,128", help="of the pipeline")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = rows_of(options.data_root, options.rows)
    labellers = contestants(options.encoder, [int(n) for n in options.batch_sizes.split(",")])
    found = {
        "rows": len(pairs),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "torch": torch.__version__,
        "contestants": alternate(labellers, pairs),
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['rows']:,} rows, {found['threads']} threads, load {found['load_at_start']:.1f}")
    print(f"{'':<28}{'rows/s':>8}  quartiles")
    for name, row in found["contestants"].items():
        low, high = row["quartiles"]
        print(f"{name:<28}{row['rows_per_s']:>8.1f}  {low:.1f} to {high:.1f}")


def rows_of(root: str, count: int) -> list[tuple[str, str]]:
    """Return `count` pairs of GLUE's training rows, of TASKS in turn."""
    texts = []
    for name in TASKS:
        spec = get_task(name)
        columns = read_split(spec, "train", root)
        texts.append(list(zip(*(columns[column] for column in spec.text), strict=True)))
    return [
        texts[n % len(texts)][n // len(texts) % len(texts[n % len(texts)])] for n in range(count)
    ]


def contestants(encoder: str, batch_sizes: Sequence[int]) -> dict[str, Label]:
    """Return what labels pairs, by name: our dense and sparse model, and the pipeline."""
    source = find_encoder(encoder)
    tokenizer = load_tokenizer(source.folder, source_limits(source))
    spec = TaskSpec("pairs", "classification", ("a", "b"), labels=("no", "yes"))
    found: dict[str, Label] = {}
    for kind in ("mt_dense", "mt_tag"):
        network = build_network(
            load_transformer(source, 0.0, False, kind),
            kind,
            [HeadSpec("pairs", 2)],
            0.0,
            RoutingOptions(num_experts=4, num_gates=1),
        ).eval()
        model = MultiTaskModel(network, tokenizer, [spec], {"kind": kind})
        found[f"predict, {kind}"] = lambda pairs, model=model: model.predict("pairs", pairs)
    for size in batch_sizes:
        found[f"pipeline, batch {size}"] = _pipeline(source.folder, tokenizer, size)
    return found


def alternate(labellers: dict[str, Label], pairs: Sequence[tuple[str, str]]) -> dict[str, dict]:
    """Return each labeller's rows a second, in turns over PARTS parts of the rows."""
    size = max(1, len(pairs) // PARTS)
    parts = [pairs[first : first + size] for first in range(0, size * PARTS, size)]
    names = list(labellers)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for label in labellers.values():
        label(parts[0][:64])  # warm
    for turn, part in enumerate(parts):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            began = time.perf_counter()
            labellers[name](part)
            rates[name].append(len(part) / (time.perf_counter() - began))
    return {
        name: {
            "rows_per_s": median(values),
            "quartiles": [quantiles(values, n=4)[0], quantiles(values, n=4)[2]],
        }
        for name, values in rates.items()
    }


def _pipeline(folder: str, tokenizer, batch_size: int) -> Label:
    from transformers import AutoModelForSequenceClassification, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the head is new
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")

    def label(pairs: Sequence[tuple[str, str]]) -> list:
        inputs = [{"text": first, "text_pair": second} for first, second in pairs]
        return list(
            classify(inputs, batch_size=batch_size, truncation=True, max_length=spec_length())
        )

    return label


def spec_length() -> int:
    """Return the tokens at which both cut a pair."""
    return TaskSpec("pairs", "classification", ("a", "b")).max_length


if __name__ == "__main__":
    main()
