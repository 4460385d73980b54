"""Which of a split's rows a run reads: a seeded share, class by class; at most a limit."""

import numpy as np

from ds_moe_mtl.data.source import Source, find_split
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec


def split_rows(
    spec: TaskSpec,
    split: str,
    root: str | None,
    limit: int | None = None,
    seed: int = 0,
    sample: tuple[float, int] | None = None,
) -> dict[str, list]:
    """The rows whose sequences `encode_task` gives of a split: columns, a value an example.

    With tables.ROW, where it is known.
    """
    sources = [find_split(spec, name, root) for name in spec.splits(split)]
    parts = [chosen_rows(spec, sources, part, limit, seed, sample) for part in range(len(sources))]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def chosen_rows(
    spec: TaskSpec,
    sources: list[Source],
    part: int,
    limit: int | None,
    seed: int,
    sample: tuple[float, int] | None,
) -> dict[str, list]:
    """Return the rows of a part of a split that its sample and its limit leave."""
    columns = sources[part].read()
    if sample is not None:
        columns = stratified(spec, columns, *sample)
    if limit is not None:
        # As many of each dev split as of the other.
        share = max(1, limit // len(sources) + (part < limit % len(sources)))
        columns = _subset(columns, share, [seed, part])
    return columns


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


def _subset(columns: dict[str, list], count: int, seed: list[int]) -> dict[str, list]:
    total = len(next(iter(columns.values())))
    if count >= total:
        return columns
    rows = np.sort(np.random.default_rng(seed).permutation(total)[:count]).tolist()
    return {name: [values[row] for row in rows] for name, values in columns.items()}
