"""Part: the machine, and the rates that other parts' figures are held against."""

from collections.abc import Callable

import torch

from ds_moe_mtl.benchmark.gpu.timing import alternated, middle, spread
from ds_moe_mtl.ranks.machine import device_name, gpu_facts, installed_versions

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "numpy", "pydantic", "pytest")


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return the device's name, driver, versions, and its rates."""
    device = torch.device("cuda" if request["gpu"] else "cpu")
    facts = {"device": device_name(device), **installed_versions(PACKAGES)}
    if request["gpu"]:
        facts |= gpu_facts(device)
    facts["threads"] = torch.get_num_threads()
    found = {"facts": facts, "tables": [_facts(facts)]}
    tell(found)
    rates = device_rates(device)
    rows = [[name, row["rate"], row["ms"], row["spread"]] for name, row in rates.items()]
    columns = ["what", "GB/s or TFLOP/s", "ms", "quartiles"]
    found["tables"].append({"title": "rates", "columns": columns, "rows": rows})
    return found | {"rates": rates}


def device_rates(device: torch.device) -> dict[str, dict]:
    """Return the rate of a large copy (GB/s, read and written) and of a product of random bf16
    numbers (TFLOP/s)."""
    count, side, rounds = (1 << 28, 8192, 20) if device.type == "cuda" else (1 << 20, 256, 3)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    work = {"copy": lambda: target.copy_(source), f"product {side}": lambda: a @ b}
    amounts = (2 * 4 * count / 1e9, 2 * side**3 / 1e12)
    rows = {}
    for (name, times), amount in zip(
        alternated(work, device, rounds, 3).items(), amounts, strict=True
    ):
        ms, low, high = middle(times)
        rows[name] = {"ms": ms, "rate": amount / (ms / 1e3), "spread": spread(low, high)}
    return rows


def _facts(facts: dict) -> dict:
    rows = [[name, value] for name, value in facts.items()]
    return {"title": "device and versions", "columns": ["what", "found"], "rows": rows}
