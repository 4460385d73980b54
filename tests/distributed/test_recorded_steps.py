"""DeepSpeed's engine and the update around recorded passes: the run without them, bit for bit."""

import torch

from ds_moe_mtl.models.graphs import as_second_runs
from ds_moe_mtl.models.shapes import Shapes
from tests.support.launch import run_ranks
from tests.support.paths import ROOT
from tests.support.steps import start_tiny
from tests.support.tiny import write_tiny

STEPS = 6


def trained(folder: str, most: int) -> dict:
    """Return the norms, counts and final weights of steps on one batch; most: records kept."""
    sections = {"model": {"dropout": 0.1}, "train": {"precision": "bf16", "fill_tokens": 64}}
    run = start_tiny(folder, sections, ROOT / "ds_configs" / "deepspeed" / "zero1.json")
    network = run.engine.module
    assert network.shapes == Shapes(64)
    network.shapes = Shapes(64, network.recorded(as_second_runs))
    network.shapes.graphs.most = most
    run.engine.train()
    micro_batches, examples, _ = run.loader.build(run.loader.order.start)
    norms = []
    for number in range(STEPS):
        norms.append(run.training_step.take(number, micro_batches, examples, True).norm)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    return {"norms": norms, "ways": dict(network.shapes.graphs.counts), "weights": weights}


def both(folder: str) -> list[dict]:
    return [trained(folder, most) for most in (0, 4)]


def test_recorded_steps_leave_the_weights_of_the_others(tmp_path):
    [(eager, recorded)] = run_ranks(both, str(write_tiny(tmp_path)), ranks=1)
    assert eager["ways"] == {"eager": STEPS}
    assert recorded["ways"] == {"eager": 2, "recorded": 1, "replayed": STEPS - 2}
    assert recorded["norms"] == eager["norms"] and len(set(eager["norms"])) == STEPS
    for name, weight in eager["weights"].items():
        assert torch.equal(recorded["weights"][name], weight), name
