"""Tied experts train as the dense model does, to rounding; after they part they do not."""

from pathlib import Path

import pytest
import torch

from ds_moe_mtl.models.token_level.upcycle import routed_ffns
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import start_tiny
from tests.support.tiny import write_tiny

ZERO1 = ROOT / "ds_configs/deepspeed/zero1.json"
ZERO0 = ROOT / "ds_configs/deepspeed/zero0.json"
STEPS = 6
TRAIN = {"steps": STEPS, "lr": 2e-3, "warmup": 0, "clip": 0.05}  # clips every step


def both(folder: str, rows: list) -> list[dict]:
    """Return each run's losses, norms and, of sparse ones, how far expert 1 is from expert 0.

    rows: (sections, DeepSpeed's JSON). Heads are the same in all.
    """
    found = []
    for sections, deepspeed in rows:
        run = start_tiny(folder, sections, Path(deepspeed), prepare=same_heads)
        run.go()
        layers = [ffn.moe for ffn in routed_ffns(run.engine.module)]
        experts = [layer.deepspeed_moe.experts.deepspeed_experts for layer in layers]
        apart = [
            float((one - other).abs().max())
            for of_layer in experts
            for one, other in zip(of_layer[0].parameters(), of_layer[1].parameters(), strict=True)
        ]
        gates = [float(layer.deepspeed_moe.gate.wg.weight.abs().max()) for layer in layers]
        logged = [row for row in run.rows if "loss" in row]
        found.append(
            {
                "loss": [row["loss"] for row in logged],
                "norm": [row["grad_norm"] for row in logged],
                "apart": max(apart, default=0.0),
                "gates": max(gates, default=0.0),
            }
        )
        run.engine.destroy()
    return found


def same_heads(network) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in network.heads.parameters():
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tied"))
    dense = {"model": {"kind": "mt_dense"}, "train": TRAIN}
    tied = {"moe": {"gate_scale": "preserve", "tied_steps": STEPS}, "train": TRAIN}
    half = {"moe": {"gate_scale": "preserve", "tied_steps": 3}, "train": TRAIN}
    rows = [(dense, ZERO1), (tied, ZERO1), (half, ZERO1), (dense, ZERO0), (tied, ZERO0)]
    rows = [(sections, str(path)) for sections, path in rows]
    names = ("dense", "tied", "half", "dense0", "tied0")
    return dict(zip(names, run_ranks(both, str(folder), rows, ranks=2)[0], strict=True))


@pytest.mark.parametrize(("tied", "dense"), [("tied", "dense"), ("tied0", "dense0")])
def test_tied_for_all_steps_is_dense_training_clipping_included(found, tied, dense):
    assert min(found[dense]["norm"]) > TRAIN["clip"]
    assert found[tied]["loss"] == pytest.approx(found[dense]["loss"], rel=1e-5)
    assert found[tied]["norm"] == pytest.approx(found[dense]["norm"], rel=1e-4)
    assert found[tied]["apart"] < 1e-6 and found[tied]["gates"] < 0.01


def test_experts_part_after_the_step_and_not_before(found):
    tied, half = found["tied"], found["half"]
    assert half["loss"][:4] == pytest.approx(tied["loss"][:4], rel=1e-5)  # 3 tied steps, 4 losses
    assert half["apart"] > 1e-4 and half["gates"] > tied["gates"]
    assert half["loss"][5] != pytest.approx(tied["loss"][5], rel=1e-5)
