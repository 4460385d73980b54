"""What a step's work is, by the names of its kernels; and how long a device was idle."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

IDLE, OTHER, OPTIMIZER = "idle", "other", "optimizer"

KINDS: Sequence[tuple[str, str]] = (
    ("collectives", r"nccl|all_?reduce|all_?gather|c10d::|gloo:"),
    ("attention", r"flash|fmha|attention|softmax(?!.*log)"),
    (
        "routing",
        r"choose_kernel|scan_kernel|order_kernel|sort_rows_kernel|logits_grad_kernel|gate_",
    ),
    ("LayerNorm", r"layer_?norm|LayerNorm|GammaBeta|cuComputeGradInput"),
    ("dropout", r"dropout|masked_scale|bernoulli|random_from_to|aten::random_"),
    (OPTIMIZER, r"adam|Adam|multi_tensor_apply|LpNorm|aten::linalg_vector_norm"),
    (
        "products",
        r"gemm|cutlass|xmma|wgmma|nvjet|splitK|gemv|matmul|\bup_kernel|down_kernel|up_grad_kernel"
        r"|down_grad_kernel|weight_grad_kernel|aten::(add)?mm|aten::bmm|mkldnn|aten::linear",
    ),
    (
        "copies and fills",
        r"Memcpy|Memset|copy|Copy|Fill|fill_|CatArray|aten::(cat|zero|stack|ones)",
    ),
    (
        "GELU and elementwise",
        r"gelu|Gelu|GELU|elementwise|reduce_kernel|index|embedding|gather|scatter"
        r"|aten::(add|mul|sum|div|sub|where|ge|lt|eq|pow|sqrt|neg|exp|log|masked|clamp)",
    ),
)
"""Kinds with the pattern of their kernels' names (CUDA's, ours, and a CPU's operators); the first
that fits. A kernel that the optimizer's part of the step has launched is the optimizer's."""


class Work(NamedTuple):
    """One kernel, copy or operator: microseconds from some start on; its part of the step."""

    name: str
    start: float
    length: float
    part: str = ""


class Kind(NamedTuple):
    """What a kind's work takes together, in ms, and how many pieces it is."""

    ms: float
    count: int


def kind_of(work: Work) -> str:
    """Return the kind of a piece of work."""
    if work.part == OPTIMIZER:
        return OPTIMIZER
    for kind, pattern in KINDS:
        if re.search(pattern, work.name):
            return kind
    return OTHER


def by_kind(works: Iterable[Work], step_ms: float) -> dict[str, Kind]:
    """Return every kind's time, longest first, and the time in which nothing ran.

    step_ms: of the whole step. Kernels that overlap are each counted whole; idle is what no kernel
    covers.
    """
    works = list(works)
    sums: dict[str, list[float]] = defaultdict(list)
    for work in works:
        sums[kind_of(work)].append(work.length)
    rows = {kind: Kind(sum(found) / 1e3, len(found)) for kind, found in sums.items()}
    rows = dict(sorted(rows.items(), key=lambda row: -row[1].ms))
    return rows | {IDLE: Kind(max(0.0, step_ms - busy(works) / 1e3), 0)}


def busy(works: Iterable[Work]) -> float:
    """Return the microseconds in which at least one piece of work ran."""
    total, end = 0.0, float("-inf")
    for work in sorted(works, key=lambda work: work.start):
        stop = work.start + work.length
        if stop > end:
            total += stop - max(work.start, end)
            end = stop
    return total


def longest(works: Iterable[Work], most: int) -> list[tuple[str, str, float, int]]:
    """Return (name, kind, ms, pieces) of the names that take most time together."""
    named: dict[tuple[str, str], list[float]] = defaultdict(list)
    for work in works:
        named[work.name, kind_of(work)].append(work.length)
    rows = [(*key, sum(found) / 1e3, len(found)) for key, found in named.items()]
    return sorted(rows, key=lambda row: -row[2])[:most]
