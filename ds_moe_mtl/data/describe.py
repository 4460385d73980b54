"""A task's data in a line: how much there is, where it is from, how the classes are balanced."""

from collections import Counter

from ds_moe_mtl.data.encode import EncodedSplit
from ds_moe_mtl.data.source import SUBSTITUTE
from ds_moe_mtl.tasks import TaskSpec


def class_counts(spec: TaskSpec, split: EncodedSplit) -> dict[str, int]:
    """Examples of each class in the order of the labels; empty but for classes."""
    if spec.kind not in ("classification", "span"):
        return {}
    counts = Counter(split.labels.astype(int).tolist())
    return {name: counts[number] for number, name in enumerate(spec.labels)}


def describe(spec: TaskSpec, train: EncodedSplit, dev: EncodedSplit) -> str:
    """One line: examples, class balance or range of the training labels, origin, cached or not.

    Example: "rte: 2,490 train, 277 dev (cached); entailment 50%, not_entailment 50%".
    """
    line = f"{spec.name}: {train.num_examples:,} train, {dev.num_examples:,} dev"
    if train.cached and dev.cached:
        line += " (cached)"
    if spec.kind == "regression":
        line += f"; scores {train.labels.min():g} to {train.labels.max():g}"
    shares = [
        f"{name} {100 * count / train.num_examples:.0f}%"
        for name, count in class_counts(spec, train).items()
    ]
    if shares:
        line += f"; {', '.join(shares[:6])}" + (f", {len(shares) - 6} more" * (len(shares) > 6))
    if SUBSTITUTE in train.origin + dev.origin:
        line += f"; train from {train.origin}; dev from {dev.origin}"
    return line
