"""Part: the optimizer's step alone, by variant: ms, and bytes a weight at the rate of a copy."""

import gc
from collections.abc import Callable

import torch

from ds_moe_mtl.benchmark.gpu.machine import device_rates
from ds_moe_mtl.benchmark.gpu.measured import Here, first_steps, measured_workload, start_here
from ds_moe_mtl.benchmark.gpu.timing import middle, spread
from ds_moe_mtl.benchmark.gpu.variants import DEFAULT, variants_of
from ds_moe_mtl.benchmark.steps import EngineSteps
from ds_moe_mtl.config import UserError

SYSTEMS = ("mt_dense", "mt_tag")
BOUND = 30
"""Bytes a weight in bf16 that an update in one pass moves, by counting: the gradient read for the
norm and again for the update (4), weight and two moments read and written (24), the 16-bit weight
written (2)."""
COLUMNS = ["variant", "system", "weights", "ms", "quartiles", "bytes a weight as a copy"]


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return the update's time of each system and variant.

    "bytes a weight as a copy": what a large copy would move for each weight in that time, in the
    same run; it is at least what the update moves, and BOUND is what it has to.
    """
    here = start_here()
    rate = device_rates(here.device)["copy"]["rate"] * 1e9
    rounds = 10 if request["gpu"] else 2
    found: dict = {"copy_bytes_per_s": rate, "bound": BOUND, "updates": [], "refused": {}}
    for name, overrides in variants_of(request).items():
        try:
            workload = measured_workload(request, overrides)
            for system in SYSTEMS:
                own = workload.of_kind(system)
                row = {"variant": name, "system": system} | _update(own, here, rounds)
                row["bytes_a_weight"] = row["ms"] / 1e3 * rate / row["weights"]
                found["updates"].append(row)
                found["tables"] = [_table(found["updates"])]
                tell(found)
        except UserError as error:
            if name == DEFAULT:
                raise
            found["refused"][name] = str(error)
    return found


def _update(workload, here: Here, rounds: int) -> dict:
    """Return {"weights", "ms", "low", "high"} of steps' last part, timed apart."""
    steps = first_steps(workload, here.device, 3, padded=here.device.type != "cuda")
    stepper = EngineSteps(workload.network(), workload.plan, 1, here.device)
    weights = sum(p.numel() for p in stepper.engine.module.parameters() if p.requires_grad)
    times = [1e3 * stepper.step(steps[i % 3]).optimizer for i in range(2 + rounds)][2:]
    ms, low, high = middle(times)
    del stepper
    gc.collect()
    if here.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"weights": weights, "ms": ms, "low": low, "high": high}


def _table(updates: list[dict]) -> dict:
    rows = [
        [
            row["variant"],
            row["system"],
            f"{row['weights']:,}",
            row["ms"],
            spread(row["low"], row["high"]),
            row["bytes_a_weight"],
        ]
        for row in updates
    ]
    return {"title": f"the update alone (bound: {BOUND})", "columns": COLUMNS, "rows": rows}
