"""A task's data in a line: how much there is, where it is from, and what is odd about it."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ds_moe_mtl.data.encode import EncodedSplit
from ds_moe_mtl.data.overlap import repeats, seen_in_training
from ds_moe_mtl.data.source import SUBSTITUTE
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec
from ds_moe_mtl.tasks.metrics import positive_class
from ds_moe_mtl.tasks.numbers import is_whole, number
from ds_moe_mtl.tasks.shape_metrics import OUTSIDE, is_bio, stray_tags


def class_counts(spec: TaskSpec, split: EncodedSplit) -> dict[str, int]:
    """Examples of each class in the order of the labels; empty but for classes.

    Of several labels the examples that have each, of tags the words.
    """
    if spec.kind == "multilabel":
        counts = Counter(dict(enumerate(split.label_sets.sum(axis=0, dtype=int).tolist())))
    elif spec.kind == "tags":
        counts = Counter(split.word_tags.tolist())
    elif spec.kind in ("classification", "span"):
        counts = Counter(split.labels.astype(int).tolist())
    else:
        return {}
    return {name: counts[place] for place, name in enumerate(spec.labels)}


def describe(
    spec: TaskSpec, train: EncodedSplit, dev: EncodedSplit, test: EncodedSplit | None = None
) -> str:
    """One line: examples, class balance or range of the training labels, origin, cached or not.

    What a user may not expect follows, with counts: texts that were cut, dev examples that are
    training examples too, labels that are read in another way than they look.
    Example: "rte: 2,490 train, 277 dev (cached); entailment 50%, not_entailment 50%".
    """
    line = f"{spec.name}: {train.num_examples:,} train, {dev.num_examples:,} dev"
    line += "" if test is None else f", {test.num_examples:,} test"
    if train.cached and dev.cached:
        line += " (cached)"
    if spec.kind == "regression":
        line += f"; scores {train.labels.min():g} to {train.labels.max():g}"
    total = train.num_examples if train.word_tags is None else len(train.word_tags)
    shares = [
        f"{_plain(name)} {100 * count / total:.0f}%"
        for name, count in class_counts(spec, train).items()
    ]
    if shares:
        line += f"; {', '.join(shares[:6])}" + (f", {len(shares) - 6} more" * (len(shares) > 6))
    if (positive := positive_class(spec)) is not None:
        line += f"; {spec.metric} is that of {_plain(positive)}"
    if SUBSTITUTE in train.origin + dev.origin:
        line += f"; train from {train.origin}; dev from {dev.origin}"
    oddities = [*label_oddities(spec, train), *_cut(train, dev), *shape_oddities(spec, train, dev)]
    oddities += [*_repeats(spec, train), *leaks(spec, train, dev)]
    oddities += [] if test is None else leaks(spec, train, test, "test")
    return "; ".join([line, *oddities])


def label_oddities(spec: TaskSpec, train: EncodedSplit) -> list[str]:
    """What of a user's training labels is read in another way than it may look, with counts."""
    if not spec.is_own or spec.kind in ("multilabel", *TOKEN_KINDS):
        return []
    total = train.num_examples
    if spec.kind == "regression":
        whole = int((train.labels == np.round(train.labels)).sum())
        if 2 * whole < total:
            return []
        hint = " (kind: classification reads classes)" if whole == total else ""
        return [f"{whole:,} of {total:,} scores are whole numbers{hint}"]
    counts = class_counts(spec, train)
    numbers = {name: value for name in counts if (value := number(name)) is not None}
    found = []
    decimals = [name for name in numbers if not is_whole(name)]
    if decimals:
        count = sum(counts[name] for name in decimals)
        found.append(
            f"{count:,} of {total:,} labels are decimal numbers read as class names "
            f"({_some(decimals)})"
        )
    words = [name for name in counts if name not in numbers]
    count = sum(counts[name] for name in words)
    if numbers and words and count <= total / 2:
        found.append(f"{count:,} of {total:,} labels are no numbers ({_some(words)})")
    return found + _look_alikes(counts, numbers)


def shape_oddities(spec: TaskSpec, train: EncodedSplit, dev: EncodedSplit) -> list[str]:
    """What of words, tags and answers is cut off or not as it should be, with counts."""
    both = (train, dev)
    found = []
    if spec.kind == "multilabel":
        empty = [int((split.label_sets.sum(axis=1) == 0).sum()) for split in both]
        if any(empty):
            found.append(f"without a label: {empty[0]:,} of train, {empty[1]:,} of dev")
    if any(split.unseen_words for split in both):
        found.append(
            f"words cut off or empty: {train.unseen_words:,} of train (not learned), "
            f"{dev.unseen_words:,} of dev (scored as O)"
        )
    if any(split.lost_answers for split in both):
        found.append(
            f"answers cut off at max_length: {train.lost_answers:,} of train (not learned), "
            f"{dev.lost_answers:,} of dev (scored all the same)"
        )
    if spec.kind == "tags":
        found += _tag_oddities(spec, both)
    return found


def _tag_oddities(spec: TaskSpec, splits: Sequence[EncodedSplit]) -> list[str]:
    if not is_bio(spec.labels):
        other = [tag for tag in spec.labels if tag != OUTSIDE and tag[:2] not in ("B-", "I-")]
        has_marks = any(tag[:2] in ("B-", "I-") for tag in spec.labels)
        hint = f": entities are scored for O, B-X and I-X alone ({_some(other)})"
        return [f"tags are not BIO{hint}"] if has_marks else []
    stray = [
        stray_tags(
            [
                [spec.labels[tag] for tag in split.word_tags[a:b]]
                for a, b in zip(split.word_offsets[:-1], split.word_offsets[1:], strict=True)
            ]
        )
        for split in splits
    ]
    if not any(stray):
        return []
    return [
        f"tags I-X that follow no X: {stray[0]:,} of train, {stray[1]:,} of dev (read as they are, "
        "scored as the beginning of an entity)"
    ]


def leaks(spec: TaskSpec, train: EncodedSplit, dev: EncodedSplit, called: str = "dev") -> list[str]:
    """How many dev examples of a user's task are training examples too, where there are any.

    called: what the split is called, where it is another.
    """
    if not spec.is_own:
        return []
    seen = seen_in_training(train, dev)
    if not seen:
        return []
    where = f": {called} is the train file" if dev.origin == train.origin else ""
    return [f"{seen:,} of {dev.num_examples:,} {called} examples are in train too{where}"]


def _repeats(spec: TaskSpec, train: EncodedSplit) -> list[str]:
    """How many training examples of a user's task are there twice, or with different labels."""
    if not spec.is_own:
        return []
    found, lines = repeats(train), []
    if found.duplicates:
        lines.append(f"{found.duplicates:,} train examples repeat others")
    if found.texts:
        lines.append(
            f"{found.texts:,} texts of train have different labels ({found.examples:,} examples)"
        )
    return lines


def _look_alikes(counts: dict[str, int], numbers: dict[str, float]) -> list[str]:
    """Classes that are one number, or one word but for case."""
    alike = defaultdict(list)
    for name in counts:
        alike[numbers.get(name, name.casefold())].append(name)
    return [
        f"classes of one {'number' if names[0] in numbers else 'word'}: "
        + ", ".join(f"{_plain(name)} ({counts[name]:,})" for name in names[:4])
        for names in alike.values()
        if len(names) > 1
    ][:3]


def _cut(train: EncodedSplit, dev: EncodedSplit) -> list[str]:
    if not train.cut + dev.cut:
        return []
    shares = [100 * split.cut / split.num_examples for split in (train, dev)]
    return [f"cut at max_length: {shares[0]:.3g}% of train, {shares[1]:.3g}% of dev"]


def _plain(name: str) -> str:
    """A class name as it is, or quoted where it would break the line."""
    return name if name.isprintable() else repr(name)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:30]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown}, {len(names) - 3} more"
