"""fp16's logic on gloo ranks: DeepSpeed's device check is lifted, all else is what a GPU runs."""

import json
from pathlib import Path

import pytest
import torch

from ds_moe_mtl.moe.convert import is_expert_key
from tests.support.launch import ROOT, run_ranks
from tests.support.steps import start_tiny
from tests.support.tiny import write_tiny

BAD_STEP, BAD_RANK = 2, 1


class Poisoned:
    """A loader whose batch of BAD_STEP weighs its loss beyond float32 on BAD_RANK."""

    def __init__(self, loader, rank: int) -> None:
        self.loader, self.rank = loader, rank
        self.stall_seconds = self.attention_padding = 0.0
        self.close = loader.close

    def __iter__(self):
        for step, (micro_batches, examples) in enumerate(self.loader):
            if step == BAD_STEP and self.rank == BAD_RANK:
                micro_batches[0].weights_B.fill_(1e38)
            yield micro_batches, examples


def overflow_on_one_rank(folder: str, json_path: str, ep_sizes: list[int]) -> list[dict]:
    """Return, for each ep_size, weights and loss scales around a step whose loss is infinite."""
    from deepspeed.accelerator import get_accelerator
    from torch import distributed as dist

    get_accelerator().is_fp16_supported = lambda: True
    results = []
    for ep_size in ep_sizes:
        sections = {
            "moe": {"ep_size": ep_size},
            "train": {"precision": "fp16", "steps": 5, "save_every": 1},
        }
        run = start_tiny(folder, sections, Path(json_path), device="cuda")
        results.append([])
        said = []
        run.loop.skipped.say = said.append

        def record(step, engine=run.engine, history=results[-1], said=said, loop=run.loop):
            weights = {k: v.detach().clone() for k, v in engine.module.state_dict().items()}
            scale = engine.optimizer.loss_scale
            history.append({"weights": weights, "scale": scale, "skipped": engine.skipped_steps})
            history[-1] |= {"said": list(said), "counted": loop.skipped.count}

        run.loop.save = record
        run.loop.loader = Poisoned(run.loop.loader, dist.get_rank())
        run.loop.run(0)
    return results


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("fp16"))
    config = json.loads((ROOT / "ds_configs/deepspeed/zero2.json").read_text())
    config["fp16"] = {"enabled": "auto", "initial_scale_power": 8, "hysteresis": 1}
    path = folder / "fp16.json"
    path.write_text(json.dumps(config))
    return run_ranks(overflow_on_one_rank, str(folder), str(path), [1, 2], ranks=2, time_limit=240)


@pytest.mark.parametrize(("which", "ep_size"), [(0, 1), (1, 2)])
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


@pytest.mark.parametrize(("which", "ep_size"), [(0, 1), (1, 2)])
def test_weights_that_ranks_share_stay_equal(histories, which, ep_size):
    for first, second in zip(histories[0][which], histories[1][which], strict=True):
        for name, weight in first["weights"].items():
            if ep_size == 1 or not is_expert_key(name):
                assert torch.equal(weight, second["weights"][name]), name


@pytest.mark.parametrize("which", [0, 1])
def test_a_skip_that_lowers_the_loss_scale_is_said_and_not_counted(histories, which):
    for rank in (0, 1):
        last = histories[rank][which][-1]
        assert last["counted"] == 0
        assert last["said"] == [
            f"step {BAD_STEP + 1} skipped: gradient beyond fp16's range; loss scale 256 -> 128"
        ]
