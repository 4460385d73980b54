"""All that a user should know of a task's data before it is trained on, as plain values."""

from collections.abc import Mapping, Sequence

import numpy as np

from ds_moe_mtl.data.check import CheckedTask
from ds_moe_mtl.data.describe import class_counts, label_oddities, shape_oddities
from ds_moe_mtl.data.encode import EncodedSplit
from ds_moe_mtl.data.lengths import full_lengths
from ds_moe_mtl.data.overlap import Repeats, repeats, seen_in_training
from ds_moe_mtl.data.tables import ROW
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.shape_metrics import is_bio

Splits = Mapping[str, EncodedSplit]
Rows = Mapping[str, Mapping[str, list]]


def survey(task: CheckedTask, splits: Splits, rows: Rows, tokenizer) -> dict:
    """What there is of a task's data, by split where it differs.

    splits, rows: the same examples as tokens and as columns, by "train", "dev" and "test".
    Everything is counted on the examples that the run reads, all of them, in time proportional to
    them (but for sorts). Examples are the same where their tokens are, so after the cut at
    max_length and as the tokenizer has them. Row numbers are those of the files, from 0.
    """
    spec = task.spec
    return {
        "task": spec.name,
        "kind": spec.kind,
        "why": task.why,
        "metric": spec.metric,
        "max_length": min(spec.max_length, tokenizer.model_max_length),
        "rows": {
            name: {"examples": split.num_examples, "from": split.origin}
            for name, split in splits.items()
        },
        "classes": (classes := _classes(spec, splits)),
        "entities": _entities(spec, classes),
        "scores": _scores(spec, splits),
        "lengths": {
            name: _lengths(spec, split, rows[name], tokenizer) for name, split in splits.items()
        },
        "empty": _empty(spec, rows),
        **_repeated(spec, splits, rows),
        "in_train": {
            name: seen_in_training(splits["train"], split)
            for name, split in splits.items()
            if name != "train"
        },
        "oddities": [
            *label_oddities(spec, splits["train"]),
            *shape_oddities(spec, splits["train"], splits["dev"]),
        ],
    }


def is_clean(found: Mapping) -> bool:
    """Whether a survey found nothing that its reader should look at."""
    counts = [
        *(n for by_split in found["empty"].values() for n in by_split.values()),
        *(of["examples"] for of in found["duplicates"].values()),
        *(of["texts"] for of in found["conflicts"].values()),
        *found["in_train"].values(),
        len(found["oddities"]),
    ]
    return not any(counts)


def _classes(spec: TaskSpec, splits: Splits) -> dict | None:
    """Examples of each class by split: of several labels those that have it, of tags the words."""
    counts = {name: class_counts(spec, split) for name, split in splits.items()}
    if not counts["train"]:
        return None
    return {label: {name: of[label] for name, of in counts.items()} for label in counts["train"]}


def _entities(spec: TaskSpec, classes: dict | None) -> dict | None:
    """Entities of each type, where tags mark them (IOB2: each begins with its B-)."""
    if spec.kind != "tags" or not is_bio(spec.labels):
        return None
    return {tag[2:]: counts for tag, counts in classes.items() if tag.startswith("B-")}


def _scores(spec: TaskSpec, splits: Splits) -> dict | None:
    if spec.kind != "regression":
        return None
    return {
        name: {
            "lowest": float(split.labels.min()),
            "median": float(np.median(split.labels)),
            "highest": float(split.labels.max()),
        }
        for name, split in splits.items()
    }


def _lengths(
    spec: TaskSpec, split: EncodedSplit, rows: Mapping[str, list], tokenizer
) -> dict[str, float]:
    lengths_N = full_lengths(spec, rows, split, tokenizer)
    return {
        "median": float(np.median(lengths_N)),
        "p95": float(np.percentile(lengths_N, 95)),
        "longest": int(lengths_N.max()),
        "cut": split.cut / split.num_examples,
    }


def _empty(spec: TaskSpec, rows: Rows) -> dict[str, dict[str, int]]:
    """Rows of each text column that hold nothing but blanks; of words those with an empty one."""
    found = {}
    for column in (*spec.text, *((spec.joined,) if spec.joined else ())):
        found[column] = {name: sum(map(_is_empty, of[column])) for name, of in rows.items()}
    return found


def _is_empty(value: str | Sequence[str]) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return any(not word.strip() for word in value)


def _repeated(spec: TaskSpec, splits: Splits, rows: Rows) -> dict[str, dict]:
    duplicates, conflicts = {}, {}
    for name, split in splits.items():
        found, columns = repeats(split), rows[name]
        duplicates[name] = {"examples": found.duplicates}
        if found.twins:
            duplicates[name]["example"] = _pair(spec, columns, found.twins)
        conflicts[name] = {"texts": found.texts, "examples": found.examples}
        if found.clash:
            conflicts[name]["example"] = _clash(spec, columns, found)
    return {"duplicates": duplicates, "conflicts": conflicts}


def _pair(spec: TaskSpec, columns: Mapping[str, list], pair: tuple[int, int]) -> dict:
    numbers = columns.get(ROW)
    return {
        "rows": None if numbers is None else [numbers[n] for n in pair],
        "texts": [[columns[name][n] for name in spec.text] for n in pair],
    }


def _clash(spec: TaskSpec, columns: Mapping[str, list], found: Repeats) -> dict:
    labels = [[columns[name][n] for name in spec.target_columns] for n in found.clash]
    one = len(spec.target_columns) == 1
    return {
        **_pair(spec, columns, found.clash),
        "labels": [label[0] if one else label for label in labels],
    }
