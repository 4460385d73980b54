"""Part: forward + backward of the network as its batches come, filled up, and by CUDA graph."""

import gc
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from ds_moe_mtl.benchmark.gpu.measured import device_of, first_steps, measured_workload
from ds_moe_mtl.benchmark.gpu.timing import alternated, middle, spread
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.graphs import CudaGraphs, as_second_runs
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.shapes import Shapes, bucket_of

SYSTEMS = ("mt_dense", "mt_tag")
MULTIPLE, TOY_MULTIPLE = 1024, 64
STEPS = 40
"""Batches whose buckets are counted."""
COLUMNS = ["encoder", "system", "way", "ms", "quartiles", "/ as they come"]


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return each way's times on one batch, whether a graph's gradients are the eager ones to the
    bit, and how often a bucket comes again in the run's first steps."""
    device = device_of(request)
    found: dict = {"rows": [], "equal": [], "buckets": [], "tables": []}
    for shape in ("minilm", "bert_base") if request["gpu"] else (None,):
        workload = measured_workload(request | {"shape": shape})
        steps = first_steps(workload, device, STEPS, padded=False)
        multiple = MULTIPLE if request["gpu"] else TOY_MULTIPLE
        found["buckets"].append(_buckets(steps, multiple))
        for system in SYSTEMS:
            network = workload.of_kind(system).network().to(device, torch.bfloat16).train()
            batch = steps[0][0][0].to(device)
            row = {"encoder": shape or "toy", "system": system}
            times, equal = _ways(network, batch, multiple, device)
            found["rows"] += [row | {"way": way} | values for way, values in times.items()]
            found["equal"].append(row | {"equal": equal})
            found["tables"] = _tables(found)
            tell(found)
            del network
            gc.collect()
    return found


def _ways(
    network: MultiTaskNetwork, batch: MultiTaskBatch, multiple: int, device: torch.device
) -> tuple[dict[str, dict], bool]:
    """Return each way's times, and whether filled and recorded passes have the same gradients."""
    record = CudaGraphs() if device.type == "cuda" else as_second_runs
    shapes = {
        "as they come": Shapes(),
        "filled": Shapes(multiple, network.recorded(record)),
        "graph": Shapes(multiple, network.recorded(record)),
    }
    shapes["filled"].graphs.most = 0
    gradients = {}
    for way in ("filled", "graph"):
        for _ in range(4):  # a bucket is recorded when it has come before
            _step(network, batch, shapes[way])
        found = (p.grad for p in network.encoder.parameters())
        gradients[way] = [grad.clone() for grad in found if grad is not None]
    equal = all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
    work = {way: partial(_step, network, batch, shape) for way, shape in shapes.items()}
    rounds = 12 if device.type == "cuda" else 2
    times = alternated(work, device, rounds, 1)
    base = middle(times["as they come"])[0]
    rows = {}
    for way in work:
        ms, low, high = middle(times[way])
        rows[way] = {"ms": ms, "low": low, "high": high, "ratio": ms / base}
    return rows, equal


def _step(network: MultiTaskNetwork, batch: MultiTaskBatch, shapes: Shapes) -> None:
    """Run forward and backward from the same random state."""
    network.shapes = shapes
    network.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    outputs = network(**network_inputs(batch))
    (network.losses(outputs, batch) * batch.weights_B).mean().backward()


def _buckets(steps: list, multiple: int) -> dict:
    """Return in how many buckets the steps fall, and the share that comes again often enough."""
    counts: Counter = Counter()
    for micro_batches, _ in steps:
        for batch in micro_batches:
            size = Shapes(multiple).size_of(batch.num_tokens)
            counts[bucket_of(batch.lengths, size, needs_lengths=False)] += 1
    replayed = sum(max(0, count - 2) for count in counts.values())
    return {"steps": len(steps), "buckets": len(counts), "replayed": replayed}


def _tables(found: dict) -> list[dict]:
    rows = [
        [r["encoder"], r["system"], r["way"], r["ms"], spread(r["low"], r["high"]), r["ratio"]]
        for r in found["rows"]
    ]
    equal = [[row["encoder"], row["system"], row["equal"]] for row in found["equal"]]
    buckets = [list(row.values()) for row in found["buckets"]]
    return [
        {"title": "forward + backward, one batch", "columns": COLUMNS, "rows": rows},
        {
            "title": "gradients of filled and recorded passes",
            "columns": ["encoder", "system", "equal to the bit"],
            "rows": equal,
        },
        {
            "title": "buckets of the run's first steps",
            "columns": ["steps", "buckets", "steps that a graph would run"],
            "rows": buckets,
        },
    ]
