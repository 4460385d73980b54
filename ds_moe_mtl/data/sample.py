"""A few of a task's training rows: a seeded share of them, class by class."""

import numpy as np

from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec


def stratified(
    spec: TaskSpec, columns: dict[str, list], share: float, seed: int
) -> dict[str, list]:
    """Return round(share * published size) of the rows, every class in the rows' own proportion.

    The published size is what the share is of, whatever part of the set is here; all rows where
    fewer are here than that. A task of unknown published size counts with its rows. Every class
    of the rows keeps at least one. Rows of a regression, of several labels, of tags and of answers
    are drawn without classes. The order of the rows stays.
    """
    labels = columns[spec.label]
    wanted = max(1, round(share * (spec.published_size or len(labels))))
    if wanted >= len(labels):
        return columns
    classes = _classes(spec, labels)
    random = np.random.default_rng([seed, *spec.name.encode()])
    rows = [
        random.permutation(members)[:count]
        for members, count in zip(classes, _counts([len(c) for c in classes], wanted), strict=True)
    ]
    kept = np.sort(np.concatenate(rows)).tolist()
    return {name: [values[row] for row in kept] for name, values in columns.items()}


def _classes(spec: TaskSpec, labels: list) -> list[np.ndarray]:
    """Return the rows of each class, in the order of the classes' names."""
    if spec.kind in ("regression", "multilabel", *TOKEN_KINDS):
        return [np.arange(len(labels))]
    names = np.array([str(label) for label in labels])
    return [np.flatnonzero(names == name) for name in sorted(set(names.tolist()))]


def _counts(sizes: list[int], wanted: int) -> list[int]:
    """Return how many of each class: proportional, largest remainders up, at least one each."""
    exact = [wanted * size / sum(sizes) for size in sizes]
    counts = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: int(exact[i]) - exact[i])
    for index in by_remainder[: max(0, wanted - sum(counts))]:
        counts[index] += 1
    return counts
