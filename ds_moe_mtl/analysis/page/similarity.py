"""How alike tasks are by their routes and by their gates, and what goes along with it.

K tasks, L layers, E experts, P pairs of tasks.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_moe_mtl.config import UserError
from ds_moe_mtl.tasks.numbers import number

FEWEST = 4
"""Tasks below which no correlation over tasks is given: our choice."""
PERMUTATIONS = 999
SEED = 0  # of the permutations: the same run gives the same page


@dataclass(frozen=True)
class Similarity:
    """Distances between tasks, 0 alike, and the tree that joins the nearest first.

    order: tasks as the leaves of the tree lie. merges: scipy's linkage matrix [K - 1, 4].
    """

    tasks: tuple[str, ...]
    distances_KK: np.ndarray
    order: tuple[int, ...]
    merges: np.ndarray


@dataclass(frozen=True)
class Association:
    """A feature of tasks against their routes.

    mantel: Spearman's correlation of the pairs' differences in the feature with their distances by
    routes; p: of a permutation test (Mantel, 1967). layer, expert, r: the expert whose share of a
    task's tokens goes most with the feature (Pearson), None where the feature is constant.
    """

    feature: str
    mantel: float
    p: float
    layer: int | None
    expert: int | None
    r: float | None


def route_similarity(tasks: Sequence[str], shares_KLE: np.ndarray) -> Similarity:
    """Return distances by routes: Jensen-Shannon's, 0 to 1, mean over layers."""
    from scipy.spatial.distance import jensenshannon

    tasks_count = len(tasks)
    distances_KK = np.zeros((tasks_count, tasks_count))
    for one in range(tasks_count):
        for other in range(one):
            each_L = jensenshannon(shares_KLE[one], shares_KLE[other], axis=1, base=2)
            distances_KK[one, other] = distances_KK[other, one] = np.nan_to_num(each_L).mean()
    return _joined(tasks, distances_KK)


def gate_similarity(tasks: Sequence[str], gates_KLX: np.ndarray) -> Similarity:
    """Return distances by gates: 1 - cosine, 0 to 2, mean over layers."""
    norms_KL1 = np.linalg.norm(gates_KLX, axis=2, keepdims=True)
    unit_KLX = gates_KLX / np.maximum(norms_KL1, 1e-30)
    cosines_KK = np.einsum("ilx,jlx->ij", unit_KLX, unit_KLX) / gates_KLX.shape[1]
    distances_KK = np.clip(1 - cosines_KK, 0, 2)
    np.fill_diagonal(distances_KK, 0)
    return _joined(tasks, (distances_KK + distances_KK.T) / 2)


def associations(
    features: Mapping[str, np.ndarray],
    shares_KLE: np.ndarray,
    distances_KK: np.ndarray,
    layers: Sequence[int],
) -> list[Association]:
    """Return each feature's association with the routes, those that vary. layers: their numbers.

    features: by name a number a task [K]. Tasks without a value (NaN) are left out of that feature.
    """
    found = []
    for name, values_K in features.items():
        known = np.flatnonzero(np.isfinite(values_K))
        if len(known) < FEWEST or np.ptp(values_K[known]) == 0:
            continue
        mantel, p = _mantel(values_K[known], distances_KK[np.ix_(known, known)])
        layer, expert, r = _strongest(values_K[known], shares_KLE[known])
        at = None if layer is None else layers[layer]
        found.append(Association(name, mantel, p, at, expert, r))
    return found


def read_features(path: Path) -> dict[str, dict[str, str]]:
    """Return by task the row of a user's CSV: a column "task", then one a feature.

    Raises UserError for a file that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--features {path}: cannot be read ({error})") from None
    if not rows or "task" not in rows[0] or len(rows[0]) < 2:
        raise UserError(f'--features {path}: allowed: a CSV with a column "task" and others')
    of_task = {row.pop("task"): row for row in rows}
    if len(of_task) < len(rows):
        raise UserError(f"--features {path}: a task has two rows; allowed: one")
    if any("" in row for row in of_task.values()):
        raise UserError(f"--features {path}: a row has more values than the first line has names")
    return of_task


def features_of(
    rows: Mapping[str, Mapping[str, str]], tasks: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the features of tasks as numbers; NaN of a task without a row.

    A column of text becomes one feature a value, 1 or 0. Raises UserError where no task has a row.
    """
    if not rows.keys() & set(tasks):
        raise UserError(f"--features: no row of the run's tasks; these are: {', '.join(tasks)}")
    columns = next(iter(rows.values()))
    return numeric({c: [rows.get(task, {}).get(c) for task in tasks] for c in columns})


def numeric(columns: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
    """Return columns as numbers, NaN where empty; one of text as a column of 0 and 1 a value."""
    found: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        known = [value for value in values if value not in (None, "")]
        if all(number(value) is not None for value in known):
            numbers = [np.nan if value in (None, "") else number(value) for value in values]
            found[name] = np.array(numbers, dtype=float)
            continue
        for word in sorted(set(map(str, known))):
            marks = [np.nan if v in (None, "") else float(str(v) == word) for v in values]
            found[f"{name}: {word}"] = np.array(marks)
    return found


def _joined(tasks: Sequence[str], distances_KK: np.ndarray) -> Similarity:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(tasks) < 2:
        return Similarity(tuple(tasks), distances_KK, tuple(range(len(tasks))), np.zeros((0, 4)))
    merges = linkage(squareform(distances_KK, checks=False), "average", optimal_ordering=True)
    return Similarity(tuple(tasks), distances_KK, tuple(map(int, leaves_list(merges))), merges)


def _mantel(values_K: np.ndarray, distances_KK: np.ndarray) -> tuple[float, float]:
    from scipy.stats import rankdata

    upper = np.triu_indices(len(values_K), 1)
    far_P = rankdata(distances_KK[upper])
    gaps_KK = np.abs(values_K[:, None] - values_K)
    ranks_KK = np.zeros_like(gaps_KK)
    ranks_KK[upper] = rankdata(gaps_KK[upper])
    ranks_KK += ranks_KK.T
    if np.ptp(far_P) == 0 or np.ptp(ranks_KK[upper]) == 0:
        return 0.0, 1.0
    observed = np.corrcoef(ranks_KK[upper], far_P)[0, 1]
    generator, beyond = np.random.default_rng(SEED), 0
    for _ in range(PERMUTATIONS):
        mixed = generator.permutation(len(values_K))
        drawn = np.corrcoef(ranks_KK[np.ix_(mixed, mixed)][upper], far_P)[0, 1]
        beyond += abs(drawn) >= abs(observed) - 1e-12
    return float(observed), (1 + beyond) / (1 + PERMUTATIONS)


def _strongest(values_K, shares_KLE) -> tuple[int | None, int | None, float | None]:
    varied_KLE = shares_KLE - shares_KLE.mean(axis=0)
    spread_LE = np.sqrt((varied_KLE**2).sum(axis=0))
    centred_K = values_K - values_K.mean()
    above_LE = np.tensordot(centred_K, varied_KLE, axes=1)
    r_LE = np.where(spread_LE > 1e-9, above_LE, 0) / np.maximum(
        spread_LE * np.linalg.norm(centred_K), 1e-30
    )
    layer, expert = np.unravel_index(np.abs(r_LE).argmax(), r_LE.shape)
    if r_LE[layer, expert] == 0:
        return None, None, None
    return int(layer), int(expert), float(r_LE[layer, expert])
