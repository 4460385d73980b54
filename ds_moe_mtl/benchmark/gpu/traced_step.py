"""Part: one traced step, its kernels' times summed by kind, dense and sparse."""

import gc
import time
from collections.abc import Callable

import torch

from ds_moe_mtl.benchmark.gpu.kinds import OPTIMIZER, Work, by_kind, longest
from ds_moe_mtl.benchmark.gpu.measured import (
    INTERPRETED,
    Here,
    first_steps,
    measured_workload,
    start_here,
)
from ds_moe_mtl.benchmark.steps import EngineSteps
from ds_moe_mtl.training.step import OPTIMIZER as STEP

SYSTEMS = ("mt_dense", "mt_tag")
NAMES_SHOWN = 12
NAMES_KEPT = 60


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return each system's kinds of work in a step, and its longest kernels by name."""
    here = start_here()
    workload = measured_workload(request, () if request["gpu"] else INTERPRETED)
    warm_up = 4 if request["gpu"] else 1
    steps = first_steps(workload, here.device, warm_up + 1, padded=not request["gpu"])
    found: dict = {"kinds": {}, "names": {}, "tables": []}
    for name in SYSTEMS:
        own = workload.of_kind(name)
        stepper = EngineSteps(own.network(), own.plan, 1, here.device)
        for step in steps[:warm_up]:
            stepper.step(step)
        works, step_ms = traced(stepper, steps[-1], here)
        found["kinds"][name] = {
            kind: row._asdict() for kind, row in by_kind(works, step_ms).items()
        }
        found["names"][name] = longest(works, NAMES_KEPT)
        found["tables"].append(_kinds(name, step_ms, found["kinds"][name], here))
        rows = [list(row) for row in found["names"][name][:NAMES_SHOWN]]
        columns = ["name", "kind", "ms", "pieces"]
        found["tables"].append({"title": f"{name}, longest", "columns": columns, "rows": rows})
        tell(found)
        del stepper
        gc.collect()
    return found


def traced(stepper: EngineSteps, step, here: Here) -> tuple[list[Work], float]:
    """Return one step's work and the step's ms, the device's work to its end.

    Tracing slows the host: what is idle here may be less without it.
    """
    with torch.profiler.profile() as profile:
        began = time.perf_counter()
        stepper.step(step)
        if here.device.type == "cuda":
            torch.cuda.synchronize(here.device)
        step_ms = 1e3 * (time.perf_counter() - began)
    if here.device.type == "cuda":
        return device_work(profile.profiler.kineto_results.events()), step_ms
    return host_work(profile.events()), step_ms


def device_work(events) -> list[Work]:
    """Return what ran on the card, of the profiler's raw events.

    A kernel belongs to the part of the step in which the host launched it: the launch and the
    kernel have one correlation number.
    """
    cuda = torch.autograd.DeviceType.CUDA
    spans, launched, kernels = [], {}, []
    for event in events:
        if event.device_type() == cuda:
            if not event.name().startswith("ds_moe_mtl::") and event.duration_ns():
                kernels.append(event)
        elif event.name() == STEP:
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
        elif event.name().startswith("cu"):  # cudaLaunchKernel, cuLaunchKernelEx, cudaMemcpyAsync
            launched[event.correlation_id()] = event.start_ns()
    works = []
    for event in kernels:
        at = launched.get(event.correlation_id())
        inside = at is not None and any(start <= at <= stop for start, stop in spans)
        part = OPTIMIZER if inside else ""
        works.append(Work(event.name(), event.start_ns() / 1e3, event.duration_ns() / 1e3, part))
    return works


def host_work(events) -> list[Work]:
    """Return what a CPU's operators took by themselves, of the profiler's events."""
    works = []
    for event in events:
        if event.name.startswith("ds_moe_mtl::") or event.self_cpu_time_total <= 0:
            continue
        above = event.cpu_parent
        while above is not None and above.name != STEP:
            above = above.cpu_parent
        part = "" if above is None else OPTIMIZER
        works.append(Work(event.name, event.time_range.start, event.self_cpu_time_total, part))
    return works


def _kinds(name: str, step_ms: float, kinds: dict[str, dict], here: Here) -> dict:
    rows = [
        [kind, row["ms"], row["ms"] / step_ms, row["count"] or ""] for kind, row in kinds.items()
    ]
    rows.append(["the step, traced", step_ms, 1.0, ""])
    where = "the card's kernels" if here.device.type == "cuda" else "a CPU's operators"
    return {
        "title": f"{name}, {where}",
        "columns": ["kind", "ms", "of the step", "pieces"],
        "rows": rows,
    }
