"""A step's time from a few seconds of stepping thin copies of a model; the whole run to compare.

A model of two depths on the run's own batches gives what a layer costs and what all the rest
does; the whole model's step is the rest + its layers. The thin copies have random weights, the
run's engine, precision, kernels, ranks and ZeRO stage. No batch is stepped twice: on a CPU in 16
bits oneDNN compiles products for new shapes, as it does in a run.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

from ds_moe_mtl.benchmark.allocations import AllocationMeter
from ds_moe_mtl.benchmark.steps import CLOCKS, EngineSteps, Split, Step
from ds_moe_mtl.benchmark.workload import Workload, batch_sizes, find_workload, tokens_of
from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.engine.engine import rank_zero_says
from ds_moe_mtl.ranks.rendezvous import Ranks

THIN, THICK = 1, 3
"""Layers of the two copies."""

WARM_UP, MOST_ROUNDS, LEAST_ROUNDS = 2, 20, 4
METERED = 3
"""Steps in which memory is counted; the first has no moments yet, and counting slows them."""

PARTS = ("forward", "backward", "optimizer")

Timed = list[tuple[float, Split]]
"""Real tokens of a step on this rank, and its time."""


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
    layers = workload.shape.layers
    steps = _steps(workload, ranks)
    row = None
    engines: dict[int, EngineSteps] = {}
    if whole:
        row, engines[layers] = _metered(workload, ranks, device, steps)
    thin = sorted({min(THIN, layers), min(THICK, layers)})
    for depth in thin:
        engines[depth] = engines.get(depth) or _engine(workload.with_layers(depth), ranks, device)
    timed, rounds = _alternate(engines, steps, seconds, CLOCKS[clock])
    steps.close()
    sizes = batch_sizes(workload.plan, ranks.world_size)
    tokens = sizes.mean.real * sizes.micro_batches
    costs = {depth: _costs(timed[depth], tokens) for depth in timed}
    predicted = {part: _extended(costs, part, thin, layers) for part in PARTS}
    predicted |= {"total": sum(predicted.values()), "rounds": rounds}
    if row is not None:
        row |= costs[layers] | {"total": sum(costs[layers].values()), "rounds": rounds}
    return {"predicted": predicted, "measured": row}


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
    engines: dict[int, EngineSteps], steps: Iterator[Step], seconds: float, clock
) -> tuple[dict[int, Timed], int]:
    """Return every depth's timed steps, in an order that turns from round to round."""
    timed: dict[int, Timed] = {depth: [] for depth in engines}
    rounds, number, began = MOST_ROUNDS, 0, time.perf_counter()
    while number < WARM_UP + rounds:
        for depth in engines if number % 2 else reversed(engines):
            step = next(steps)
            tokens = sum(batch.num_tokens for batch in step[0])
            timed[depth].append((tokens, engines[depth].step(step, clock)))
        number += 1
        if number == WARM_UP:
            a_round = (time.perf_counter() - began) / WARM_UP
            wanted = min(MOST_ROUNDS, max(LEAST_ROUNDS, round(seconds / max(a_round, 1e-3))))
            rounds = rank_zero_says(wanted)
    return {depth: rows[WARM_UP:] for depth, rows in timed.items()}, rounds


def _costs(timed: Timed, tokens: float) -> dict[str, float]:
    """Return the median seconds of each part, of a step with `tokens` real tokens."""
    return {
        part: median(
            getattr(split, part) * (1 if part == "optimizer" else tokens / max(own, 1))
            for own, split in timed
        )
        for part in PARTS
    }


def _extended(costs: dict[int, dict], part: str, thin: list[int], layers: int) -> float:
    """Return a part's seconds at the whole depth, on the line through the thin copies."""
    first, last = thin[0], thin[-1]
    rise = (costs[last][part] - costs[first][part]) / max(last - first, 1)
    return costs[last][part] + max(rise, 0.0) * (layers - last)


def _engine(workload: Workload, ranks: Ranks, device) -> EngineSteps:
    return EngineSteps(workload.network(), workload.plan, ranks.world_size, device)


def _steps(workload: Workload, ranks: Ranks) -> Iterator[Step]:
    with closing(workload.plan.super_batches(ranks.rank, ranks.world_size)) as loader:
        yield from loader
