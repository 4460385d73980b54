"""Training by the update's kernels, in Triton's interpreter: the plain update's steps, and skips
that the host learns of one step later."""

import json
from pathlib import Path

import pytest
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models.kernels import check_kernels
from tests.distributed.test_skipped import BAD_STEP, NaNLabels
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import start_tiny
from tests.support.tiny import tiny_config, write_tiny

CASES = [("bf16", 1, 1.0), ("bf16", 2, 0.05), ("fp32", 1, 0.05)]
"""precision, ep_size, clip; on two ranks."""


def one_step_each(folder: str, cases: list) -> list[dict]:
    """Return, for each case, what a rank holds after one step by either update."""
    return [
        {
            kernels: _after_one_step(folder, precision, ep_size, clip, kernels)
            for kernels in ("torch", "triton")
        }
        for precision, ep_size, clip in cases
    ]


def _after_one_step(folder: str, precision: str, ep_size: int, clip: float, kernels: str) -> dict:
    train = {"steps": 1, "precision": precision, "clip": clip, "update_kernels": kernels}
    train |= {"weight_decay": 0.01, "batch_size": 12}
    sections = {"moe": {"ep_size": ep_size}, "train": train}
    run = start_tiny(folder, sections, ROOT / "ds_configs/deepspeed/zero1.json")
    zero = run.engine.optimizer
    before = [flat.detach().clone() for flat in zero.single_partition_of_fp32_groups]
    run.go()
    states = [zero.optimizer.state[flat] for flat in zero.single_partition_of_fp32_groups]
    (row,) = [row for row in run.rows if "grad_norm" in row]
    return {
        "before": before,
        "weights": [flat.detach().clone() for flat in zero.single_partition_of_fp32_groups],
        "stored": [flat.detach().clone() for flat in zero.bit16_groups_flat],
        "moments": [state[name].clone() for state in states for name in ("exp_avg", "exp_avg_sq")],
        "steps": [float(state["step"]) for state in states],
        "norm": row["grad_norm"],
        "update": run.about["update"],
    }


def late_skips(folder: str) -> dict:
    """Return what a run without logged steps knew after each of them, and what it wrote."""
    train = {"steps": 6, "precision": "bf16", "update_kernels": "triton", "log_every": 100}
    sections = {"train": train | {"save_every": 1, "batch_size": 12}}
    run = start_tiny(folder, sections, ROOT / "ds_configs/deepspeed/zero1.json")
    rank = torch.distributed.get_rank()
    loader = run.loader = NaNLabels(run.loader, rank, BAD_STEP)
    known, weights, said = [], [], []

    def record(step):
        known.append((run.engine.skipped_steps, run.skipped.count))
        weights.append([w.detach().clone() for w in run.engine.module.state_dict().values()])

    run.save, run.skipped.say = record, said.append
    run.go()
    lines = Path(folder, f"skipped{rank}.jsonl").read_text().splitlines()
    found = {"known": known, "weights": weights, "said": said, "planted": loader.planted}
    return found | {"lines": list(map(json.loads, lines)), "rows": list(run.rows)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("kernel_update"))


def test_a_step_is_the_plain_updates_to_rounding(tiny):
    for found in run_ranks(one_step_each, str(tiny), CASES, ranks=2, time_limit=240):
        for case, (precision, _, clip) in zip(found, CASES, strict=True):
            plain, ours = case["torch"], case["triton"]
            assert ours["update"].startswith("AdamW in one pass by triton (asked for)")
            assert plain["update"].startswith("AdamW in one pass by torch (asked for)")
            assert ours["norm"] == pytest.approx(plain["norm"], rel=1e-6)
            assert ours["steps"] == plain["steps"] == [1.0] * len(plain["steps"])
            assert clip == 1.0 or ours["norm"] > clip
            for a, b, before in zip(
                ours["weights"], plain["weights"], plain["before"], strict=True
            ):
                torch.testing.assert_close(a, b, rtol=4e-7, atol=1e-8)
                assert not torch.equal(a, before)
            for a, b in zip(ours["moments"], plain["moments"], strict=True):
                torch.testing.assert_close(a, b, rtol=2e-6, atol=0)
            if precision == "fp32":
                continue
            for a, b in zip(ours["stored"], plain["stored"], strict=True):
                assert (a != b).float().mean() < 1e-3  # a rounding to bf16 that fell otherwise


def test_a_skip_is_explained_one_step_later_under_its_own_number(tiny):
    results = run_ranks(late_skips, str(tiny), ranks=2, time_limit=240)
    planted = sorted(results[1]["planted"])
    assert planted
    for result in results:
        # The step is the third: after it the host does not know, after the fourth it does.
        assert result["known"] == [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (1, 1)]
        expected = {"step": BAD_STEP, "reason": "loss", "examples": {"amount": planted}}
        assert result["lines"] == [expected]
        shown = ", ".join(map(str, planted))
        assert result["said"] == [f"step {BAD_STEP} skipped: non-finite loss of amount {shown}"]
        before, bad, after = result["weights"][BAD_STEP - 2 : BAD_STEP + 1]
        assert all(map(torch.equal, before, bad)) and not all(map(torch.equal, bad, after))
        (last,) = [row for row in result["rows"] if "loss" in row]
        assert last["skipped"] == 1 and last["loss"] == last["loss"]  # no NaN is summed


def test_an_update_that_cannot_run_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = tiny_config(write_tiny(tmp_path), train={"update_kernels": "triton"})
    with pytest.raises(UserError, match="train.update_kernels: .*Triton needs a GPU"):
        check_kernels(config, "cpu")
