"""TaskMoE with one gate where DeepSpeed's own tests have MoE: engines, checkpoints, residuals.

The models and the steps are those of DeepSpeed's tests/unit/moe and tests/unit/checkpoint, in fp32
(its accelerator has no fp16 on a CPU); what they mock of its all-to-all has no counterpart here.
"""

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from tests.support.launch import run_ranks

HIDDEN, EXPERTS, STEPS = 16, 4, 3
ENGINES = [(1, 0), (2, 0), (2, 1), (2, 2)]
"""(ep_size, ZeRO stage) of an engine on two ranks."""


class SimpleMoE(nn.Module):
    """Two MoE layers of one kind between a linear layer and a loss."""

    def __init__(self, ep_size: int, **options) -> None:
        super().__init__()
        from ds_moe_mtl.moe import TaskMoE

        self.linear = nn.Linear(HIDDEN, HIDDEN)
        expert = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN))
        options = {"num_gates": 1, "load_balance_loss": 0.1, **options}
        self.moe_1 = TaskMoE(HIDDEN, expert, EXPERTS, ep_size, 1, **options)
        self.moe_2 = TaskMoE(
            hidden_size=HIDDEN, expert=expert, ep_size=ep_size, num_experts=EXPERTS, k=1, **options
        )

    def forward(self, x, y):
        first = self.linear(x)
        out, aux_1, _ = self.moe_1(first)
        out, aux_2, counts = self.moe_2(out)
        assert int(counts.sum()) == x.shape[0] * x.shape[1]
        loss = nn.functional.cross_entropy((first + out).mean(1), y)
        return loss + aux_1 + aux_2, (aux_1 + aux_2).detach()


def new_engine(ep_size: int, stage: int, seed: int = 0, split: bool = True, **options):
    import deepspeed
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    torch.manual_seed(seed)
    model = SimpleMoE(ep_size, **options)
    parameters = model.parameters()
    if split:
        group = {"params": list(parameters), "name": "random-unique-name"}
        parameters = split_params_into_different_moe_groups_for_optimizer(group)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(
        config=config,
        model=model,
        optimizer=torch.optim.AdamW(parameters, lr=1e-2),
        dist_init_required=False,
    )
    return engine


def train(engine, steps: int = STEPS) -> list[tuple[float, float]]:
    """Return this rank's (loss, auxiliary loss) of every step."""
    generator = torch.Generator().manual_seed(10 + dist.get_rank())
    found = []
    for _ in range(steps):
        x = torch.randn(2, 8, HIDDEN, generator=generator)
        loss, aux_loss = engine(x, torch.tensor([0, 1]))
        engine.backward(loss)
        engine.step()
        found.append((loss.item(), aux_loss.item()))
    return found


def state_of(engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}


def engines(folder: str) -> dict:
    """Return what each engine did, before and after its checkpoint was loaded into another."""
    from ds_moe_mtl.engine.engine import start_process_group
    from ds_moe_mtl.ranks.rendezvous import Ranks

    rank, world = dist.get_rank(), dist.get_world_size()
    start_process_group(Ranks(rank, world, rank, world, "127.0.0.1", 1, "environment"))
    found = {}
    for ep_size, stage in ENGINES:
        engine = new_engine(ep_size, stage)
        steps = train(engine)
        tag = f"ep{ep_size}-zero{stage}"
        engine.save_checkpoint(str(Path(folder, tag)), tag="saved")
        state = state_of(engine)
        other = new_engine(ep_size, stage, seed=9)
        other.load_checkpoint(str(Path(folder, tag)), tag="saved")
        found[ep_size, stage] = {
            "steps": steps,
            "same": all(torch.equal(state[name], t) for name, t in state_of(other).items()),
            "continued": train(engine, 2),
            "continued_after_loading": train(other, 2),
            "groups": sum(bool(group.get("moe")) for group in engine.optimizer.param_groups),
        }
    residual = new_engine(2, 2, use_residual=True)
    found["residual"] = train(residual)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(engines, str(tmp_path_factory.mktemp("engines")), ranks=2)


@pytest.mark.parametrize("which", ENGINES)
def test_an_engine_trains_with_expert_groups_of_its_own(found, which):
    for rank in found:
        losses = [loss for loss, _ in rank[which]["steps"]]
        aux = [aux_loss for _, aux_loss in rank[which]["steps"]]
        assert rank[which]["groups"] > 0
        assert all(aux_loss >= 0.2 - 1e-5 for aux_loss in aux)  # two layers of 0.1, where even
        assert losses[0] != losses[-1]
    for rank, other in zip(found[0][which]["steps"], found[0][ENGINES[0]]["steps"], strict=True):
        assert rank == pytest.approx(other, rel=1e-4)  # spread experts train as whole ones


@pytest.mark.parametrize("which", ENGINES)
def test_a_checkpoint_loads_into_another_engine_and_continues_alike(found, which):
    for rank in found:
        assert rank[which]["same"]
        assert rank[which]["continued"] == rank[which]["continued_after_loading"]


def test_a_residual_layer_trains(found):
    losses = [loss for loss, _ in found[0]["residual"]]
    assert losses[0] != losses[-1]
