"""What is measured in ranks of its own: this module is one of them, and starts them."""

from collections.abc import Mapping
from importlib import import_module

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.engine.engine import start_process_group, stop_process_group
from ds_moe_mtl.ranks.local import on_ranks, serve
from ds_moe_mtl.ranks.rendezvous import Ranks

WORK = {"calibrate": "calibration", "contest": "throughput"}
"""Functions by name, with their module in ds_moe_mtl.benchmark."""


def measure(work: str, config: RunConfig, options: Mapping[str, object], count: int) -> dict:
    """Return what a function of WORK, called with `options`, finds on `count` ranks.

    Raises what ranks.local.on_ranks does.
    """
    request = {"work": work, "config": config.model_dump(mode="json"), "options": dict(options)}
    return on_ranks(__name__, request, count)


def _work(request: dict, ranks: Ranks) -> object:
    """Do the work of a request on one rank; a collective call."""
    config = RunConfig.model_validate(request["config"])
    device = start_process_group(ranks)
    name = request["work"]
    work = getattr(import_module(f"ds_moe_mtl.benchmark.{WORK[name]}"), name)
    found = work(config, ranks, device, **request["options"])
    stop_process_group()
    return found


if __name__ == "__main__":
    serve(_work)
