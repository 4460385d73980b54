"""The step that a benchmark times is the step that a run takes, losses and weights to the bit."""

from pathlib import Path

import pytest
import torch

from tests.support.launch import ROOT, run_ranks
from tests.support.tiny import write_tiny

STEPS = 3
GYM = ["gym-glue-sst2", "gym-quarel", "gym-web_questions"]
ROUTER = {"vector_size": 8, "hidden": 8, "temperature": 1.0, "clip": 0.01}
CASES = {
    "balanced": {
        "moe": {"load_balance_loss": 0.1},
        "train": {"loss_scaling": False, "accumulation": 2},
    },
    "options": {"model": {"kind": "task_moe"}, "router": ROUTER, "tasks": GYM[:2]},
    "generated": {"model": {"kind": "task_moe"}, "router": ROUTER, "tasks": GYM, "bart": True},
}
"""An auxiliary loss without loss scaling; options under a router clipped apart; answers."""


def step_both(folder: str, cases: dict) -> dict:
    """Return for each case what each step left: (in the run, in the benchmark)."""
    return {name: _step_both(Path(folder), dict(case)) for name, case in cases.items()}


def _step_both(folder: Path, sections: dict) -> tuple[list, list]:
    from ds_moe_mtl.benchmark.steps import EngineSteps
    from ds_moe_mtl.training.hooks import Hook
    from ds_moe_mtl.training.loop import TrainingLoop
    from tests.support.steps import build_tiny, start_tiny

    class Losses(Hook):
        """Keeps what each step of a run left."""

        def __init__(self, run) -> None:
            self.run, self.found = run, []

        def after_step(self, state) -> None:
            self.found.append(_left(self.run.engine, state.outcome))

    generated = sections.pop("bart", False)
    encoder = folder / ("bart" if generated else "encoder")
    sections["model"] = {"dropout": 0.1, "encoder": str(encoder), **sections.get("model", {})}
    sections["data"] = {"root": str(folder)}
    sections["train"] = {"steps": STEPS, "log_every": 9, **sections.get("train", {})}
    deepspeed = ROOT / "ds_configs/deepspeed/zero1.json"
    run = start_tiny(str(folder), sections, deepspeed)
    network = build_tiny(str(folder), sections, deepspeed).network
    ours = Losses(run)
    TrainingLoop(run, [ours]).train()
    steps = EngineSteps(network, run.plan, 1, run.shared.device)
    theirs = []
    loader = run.plan.super_batches()
    for step, _ in zip(loader, range(STEPS), strict=False):
        split = steps.step(step)
        assert min(split.forward, split.backward, split.optimizer) > 0
        theirs.append(_left(steps.engine, steps.outcome))
    loader.close()
    return ours.found, theirs


def _left(engine, outcome) -> dict:
    """Return a step's losses and rates, and the weights after it."""
    state = engine.module.state_dict()
    return {
        "losses": [losses_B.clone() for losses_B, _ in outcome.parts],
        "rates": [group["lr"] for group in engine.optimizer.param_groups],
        "weights": {name: tensor.detach().clone() for name, tensor in state.items()},
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    from tests.support.bart import write_bart
    from tests.support.gym import write_gym

    folder = write_tiny(tmp_path_factory.mktemp("steps"))
    write_gym(folder)
    write_bart(folder / "bart")
    return run_ranks(step_both, str(folder), CASES, ranks=1, time_limit=300)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_benchmark_takes_the_steps_of_the_run(found, case):
    ours, theirs = found[case]
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert [x.tolist() for x in mine["losses"]] == [x.tolist() for x in other["losses"]]
        assert mine["rates"] == other["rates"]
        for name, weight in mine["weights"].items():
            assert torch.equal(weight, other["weights"][name]), name
    moved = [not torch.equal(w, ours[-1]["weights"][n]) for n, w in ours[0]["weights"].items()]
    assert any(moved)
