"""A step's time from a few seconds of stepping thin copies of a model; the whole run to compare.

A model of two depths on the run's own batches gives what a layer costs and what all the rest
does; the whole model's step is the rest + its layers. Where only some layers have experts, a third
copy, as deep but with experts in one layer, tells the two kinds of layers apart. The thin copies
have random weights, the run's engine, precision, kernels, ranks and ZeRO stage. No batch is
stepped twice: on a CPU in 16 bits oneDNN compiles products for new shapes, as it does in a run.
"""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from statistics import median
from typing import NamedTuple

from ds_moe_mtl.benchmark.allocations import AllocationMeter
from ds_moe_mtl.benchmark.steps import EngineSteps, Step
from ds_moe_mtl.benchmark.stopwatch import Split, Stopwatch
from ds_moe_mtl.benchmark.workload import Workload, batch_sizes, find_workload, tokens_of
from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.engine.engine import rank_zero_says
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers
from ds_moe_mtl.ranks.rendezvous import Ranks

THIN, THICK = 1, 3
"""Layers of the copies."""

WARM_UP, MOST_ROUNDS, LEAST_ROUNDS = 2, 20, 4
METERED = 3
"""Steps in which memory is counted; the first has no moments yet, and counting slows them."""

PARTS = ("forward", "backward", "optimizer")

Timed = list[tuple[float, Split]]
"""Real tokens of a step on this rank, and its time."""


class Copy(NamedTuple):
    """A model by its layers, and how many of them have experts."""

    layers: int
    sparse: int


def calibrate(
    config: RunConfig,
    ranks: Ranks,
    device,
    seconds: float,
    shape: str | None,
    whole: bool,
    clock: str,
) -> dict[str, dict | None]:
    """Return {"predicted", "measured"}: rows of seconds by part; measured is None unless `whole`.

    seconds: what the rounds may take; at least LEAST_ROUNDS are run. whole: step the whole model
    too, in turn with its thin copies, and count its memory. clock "cpu": this process's CPU time,
    which on one thread is what the wall clock shows on an idle machine. A collective call.
    """
    workload = find_workload(config, shape, lambda line: None)
    model = whole_of(config, workload.shape.layers)
    steps = _steps(workload, ranks)
    row = None
    engines: dict[Copy, EngineSteps] = {}
    if whole:
        row, engines[model] = _metered(workload, ranks, device, steps)
    for copy in copies(model):
        engines[copy] = engines.get(copy) or _engine(workload.with_layers(*copy), ranks, device)
    timed, rounds = _alternate(engines, steps, seconds, Stopwatch(device, clock))
    steps.close()
    sizes = batch_sizes(workload.plan, ranks.world_size)
    tokens = sizes.mean.real * sizes.micro_batches
    costs = {copy: _costs(timed[copy], tokens) for copy in timed}
    predicted = {
        part: extended({copy: costs[copy][part] for copy in costs}, model) for part in PARTS
    }
    predicted |= {"total": sum(predicted.values()), "rounds": rounds}
    if row is not None:
        row |= costs[model] | {"total": sum(costs[model].values()), "rounds": rounds}
    return {"predicted": predicted, "measured": row}


def whole_of(config: RunConfig, layers: int) -> Copy:
    """Return the whole model of a run, of so many layers."""
    sparse = config.model.kind in SPARSE_KINDS
    return Copy(layers, len(sparse_layers(config.moe.layers, layers)) if sparse else 0)


def copies(model: Copy) -> list[Copy]:
    """Return the thin copies that tell what each layer of a model costs, the thinnest first."""
    depths = sorted({min(THIN, model.layers), min(THICK, model.layers)})
    if model.sparse in (0, model.layers):
        return [Copy(depth, depth if model.sparse else 0) for depth in depths]
    return [Copy(THIN, THIN), Copy(depths[-1], THIN), Copy(depths[-1], depths[-1])]


def extended(seconds: Mapping[Copy, float], model: Copy) -> float:
    """Return a part's seconds in the whole model, from those of its copies.

    On the line through two depths; where layers are of two kinds, on the plane through three
    copies. A layer that seems to cost less than nothing costs nothing.
    """
    thin = copies(model)
    first, middle, last = thin[0], thin[len(thin) // 2], thin[-1]
    if len(thin) < 3:
        rise = (seconds[last] - seconds[first]) / max(last.layers - first.layers, 1)
        return seconds[last] + max(rise, 0.0) * (model.layers - last.layers)
    added = last.layers - first.layers
    dense = max((seconds[middle] - seconds[first]) / added, 0.0)
    experts = max((seconds[last] - seconds[middle]) / added, 0.0)
    more, sparser = model.layers - last.layers, last.sparse - model.sparse
    return seconds[last] + dense * more - experts * sparser


def _metered(
    workload: Workload, ranks: Ranks, device, steps: Iterator[Step]
) -> tuple[dict, EngineSteps]:
    """Return the whole model's memory in bytes, and its engine.

    held: after a step; peak: at the fullest moment of the counted steps; resident: the process's
    largest resident memory, imports and all. tokens: of those steps' micro-batches.
    """
    meter = AllocationMeter(device)
    with meter.measured():
        engine = _engine(workload, ranks, device)
    seen = []
    for _ in range(METERED):
        step = next(steps)
        seen += [list(tokens_of(batch)) for batch in step[0]]
        meter.peak = 0
        with meter.measured():
            engine.step(step)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {"held": meter.held, "peak": meter.peak, "resident": resident, "tokens": seen}
    return row, engine


def _alternate(
    engines: dict[Copy, EngineSteps], steps: Iterator[Step], seconds: float, watch: Stopwatch
) -> tuple[dict[Copy, Timed], int]:
    """Return every copy's timed steps, in an order that turns from round to round."""
    timed: dict[Copy, Timed] = {copy: [] for copy in engines}
    rounds, number, began = MOST_ROUNDS, 0, time.perf_counter()
    while number < WARM_UP + rounds:
        for copy in engines if number % 2 else reversed(engines):
            step = next(steps)
            tokens = sum(batch.num_tokens for batch in step[0])
            timed[copy].append((tokens, engines[copy].step(step, watch)))
        number += 1
        if number == WARM_UP:
            a_round = (time.perf_counter() - began) / WARM_UP
            wanted = min(MOST_ROUNDS, max(LEAST_ROUNDS, round(seconds / max(a_round, 1e-3))))
            rounds = rank_zero_says(wanted)
    return {copy: rows[WARM_UP:] for copy, rows in timed.items()}, rounds


def _costs(timed: Timed, tokens: float) -> dict[str, float]:
    """Return the median seconds of each part, of a step with `tokens` real tokens."""
    return {
        part: median(
            getattr(split, part) * (1 if part == "optimizer" else tokens / max(own, 1))
            for own, split in timed
        )
        for part in PARTS
    }


def _engine(workload: Workload, ranks: Ranks, device) -> EngineSteps:
    return EngineSteps(workload.network(), workload.plan, ranks.world_size, device)


def _steps(workload: Workload, ranks: Ranks) -> Iterator[Step]:
    with closing(workload.plan.super_batches(ranks.rank, ranks.world_size)) as loader:
        yield from loader
