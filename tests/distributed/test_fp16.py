"""fp16's logic on gloo ranks: DeepSpeed's device check is lifted, all else is what a GPU runs.

The third run has the update's kernels, in Triton's interpreter.
"""

import pytest
import torch

from ds_moe_mtl.moe.convert import is_expert_key
from tests.support.launch import run_ranks
from tests.support.overflow import BAD_STEP, overflow_on_one_rank, write_fp16
from tests.support.tiny import write_tiny

BAD_RANK = 1


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("fp16"))
    arguments = str(folder), str(write_fp16(folder)), [1, 2, 2], BAD_RANK, "triton"
    return run_ranks(overflow_on_one_rank, *arguments, ranks=2, time_limit=240)


@pytest.mark.parametrize(("which", "ep_size"), [(0, 1), (1, 2), (2, 2)])
def test_an_overflow_on_one_rank_skips_the_step_on_all(histories, which, ep_size):
    for rank in (0, 1):
        history = histories[rank][which]
        assert [entry["skipped"] for entry in history] == [0, 0, 1, 1, 1]
        assert [entry["scale"] for entry in history] == [256, 256, 128, 128, 128]
        for name, weight in history[BAD_STEP]["weights"].items():
            assert weight.dtype == torch.float16 and torch.isfinite(weight).all()
            assert torch.equal(weight, history[BAD_STEP - 1]["weights"][name]), name
        moved = [
            name
            for name, weight in history[BAD_STEP + 1]["weights"].items()
            if not torch.equal(weight, history[BAD_STEP]["weights"][name])
        ]
        assert any(is_expert_key(name) for name in moved)
        assert any(not is_expert_key(name) for name in moved)


@pytest.mark.parametrize(("which", "ep_size"), [(0, 1), (1, 2), (2, 2)])
def test_weights_that_ranks_share_stay_equal(histories, which, ep_size):
    for first, second in zip(histories[0][which], histories[1][which], strict=True):
        for name, weight in first["weights"].items():
            if ep_size == 1 or not is_expert_key(name):
                assert torch.equal(weight, second["weights"][name]), name


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_skip_that_lowers_the_loss_scale_is_said_and_not_counted(histories, which):
    for rank in (0, 1):
        last = histories[rank][which][-1]
        assert last["counted"] == 0
        assert last["said"] == [
            f"step {BAD_STEP + 1} skipped: gradient beyond fp16's range; loss scale 256 -> 128"
        ]
