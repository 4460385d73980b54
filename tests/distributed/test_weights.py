"""Weights changed beside the update: the experts' pull and the average, at every ZeRO stage."""

import tempfile
from pathlib import Path

import pytest
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.engine.average import WeightAverage
from ds_moe_mtl.engine.expert_pull import pull_experts
from ds_moe_mtl.engine.partitions import own_weights, publish
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import start_tiny
from tests.support.tiny import write_tiny

PULL, FIRST, STEPS = 0.25, 2, 5
CASES = {
    "zero0": ("zero0", "fp32"),
    "zero1": ("zero1", "fp32"),
    "zero2_bf16": ("zero2", "bf16"),
}


def pulled_and_averaged(folder: str, cases: list) -> list[dict]:
    """Return each case's module weights before and after a pull, and those that were averaged."""
    found = []
    for stage, precision in cases:
        sections = {"train": {"precision": precision}, "moe": {"expert_pull": PULL}}
        run = start_tiny(folder, sections, ROOT / f"ds_configs/deepspeed/{stage}.json")
        engine = run.engine
        before = weights_of(engine)
        pull_experts(engine, PULL)
        after = weights_of(engine)
        publish(engine)
        again = weights_of(engine)
        average, taken = WeightAverage(engine, FIRST), []
        with average.in_place():
            untouched = weights_of(engine)
        for step in range(1, STEPS + 1):
            for own in own_weights(engine):
                own.add_(0.1 * step * own.abs())
            publish(engine)
            taken.append(weights_of(engine))
            average.update(step)
        with average.in_place():
            mean = weights_of(engine)
        with tempfile.TemporaryDirectory() as place:
            average.save(Path(place))
            loaded = WeightAverage(engine, FIRST)
            loaded.load(Path(place))
            with loaded.in_place():
                mean_again = weights_of(engine)
            refusal = ""
            try:
                loaded.load(Path(place) / "nothing")
            except UserError as error:
                refusal = str(error)
        found.append(
            {
                "before": before,
                "after": after,
                "again": again,
                "untouched": untouched,
                "taken": taken,
                "mean": mean,
                "mean_again": mean_again,
                "left": weights_of(engine),
                "refusal": refusal,
            }
        )
        engine.destroy()
    return found


def weights_of(engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("weights"))
    ranks = run_ranks(pulled_and_averaged, str(folder), list(CASES.values()), ranks=2)
    return [dict(zip(CASES, cases, strict=True)) for cases in ranks]


@pytest.mark.parametrize("case", CASES)
def test_a_pull_moves_each_expert_towards_the_mean_of_its_layer_and_nothing_else(found, case):
    for rank in found:
        before, after = rank[case]["before"], rank[case]["after"]
        tolerance = 1e-2 if "bf16" in case else 1e-6
        moved = 0.0
        for name, weight in before.items():
            if ".deepspeed_experts." not in name:
                assert torch.equal(after[name], weight), name
                continue
            head, _, tail = name.partition(".deepspeed_experts.")
            tail = tail.partition(".")[2]
            copies = [before[f"{head}.deepspeed_experts.{e}.{tail}"].float() for e in range(4)]
            mean = sum(copies) / 4
            wanted = weight.float() + PULL * (mean - weight.float())
            torch.testing.assert_close(
                after[name].float(), wanted, rtol=tolerance, atol=tolerance / 10, msg=name
            )
            moved += float((after[name].float() - weight.float()).abs().sum())
        assert moved > 1
        assert all(torch.equal(rank[case]["again"][name], after[name]) for name in after)


@pytest.mark.parametrize("case", CASES)
def test_the_average_is_the_mean_of_the_last_steps_and_leaves_the_weights(found, case):
    for rank in found:
        values = rank[case]
        tolerance = 2e-2 if "bf16" in case else 1e-6
        for name, weight in values["mean"].items():
            steps = [taken[name].float() for taken in values["taken"][FIRST:]]
            wanted = sum(steps) / len(steps)
            torch.testing.assert_close(
                weight.float(), wanted, rtol=tolerance, atol=tolerance, msg=name
            )
            assert torch.equal(values["mean_again"][name], weight)
            assert torch.equal(values["left"][name], values["taken"][-1][name])
            assert torch.equal(values["untouched"][name], values["again"][name])


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_without_the_average_is_refused_in_one_line(found, case):
    for values in found:  # the same line on every rank
        line = values[case]["refusal"]
        assert "nothing has no average_rank_00000.safetensors; with train.average_from" in line
        assert "\n" not in line


def test_all_ranks_have_the_same_weights(found):
    for case in CASES:
        for key in ("after", "mean"):
            mine, other = (rank[case][key] for rank in found)
            assert all(torch.equal(mine[name], other[name]) for name in mine)
