"""Training steps of a tiny run on however many ranks there are; what each step left behind."""

import os
from pathlib import Path

import torch
from torch import distributed as dist

from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.data import SuperBatches
from ds_moe_mtl.moe.convert import plain_state
from ds_moe_mtl.training.engine import start_engine, start_process_group
from ds_moe_mtl.training.loop import TrainingLoop
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, task_specs
from ds_moe_mtl.training.rendezvous import rendezvous
from tests.support.tiny import differ_experts, spread_gates, tiny_config


class Rows(list):
    """Stands where a MetricsLog stands and keeps the rows."""

    write = list.append


class NeverStopped:
    """A StopRequest that nobody makes."""

    def agreed(self, device: torch.device) -> bool:
        return False


def quiet(line: str) -> None:
    """Say nothing."""


def train_tiny(folder: str, sections: dict, zero: str = "zero1", root: str = ".") -> dict:
    """Return {"rows", "state", "margin"} of a tiny run trained on all ranks of the group.

    rows: what the run logged; state: the final plain state (rank 0); margin: the least difference
    between the two best experts' logits that the first step met on this rank.
    """
    start_process_group(rendezvous(os.environ))
    json = f"{root}/ds_configs/deepspeed/{zero}.json"
    config = tiny_config(Path(folder), deepspeed=json, **sections)
    plan = make_plan(config, task_specs(config), quiet)
    network, _ = new_network(plan)
    spread_gates(network)
    differ_experts(network)
    engine = start_engine(network, config, resolve_deepspeed(config, dist.get_world_size()))
    margins = _watch_margins(engine.module)
    loader = SuperBatches(
        plan.train,
        plan.specs,
        config.mixture,
        config.train.batch_size,
        config.run.seed,
        dist.get_rank(),
        dist.get_world_size(),
        config.train.accumulation,
        plan.total_steps,
    )
    rows = Rows()
    loop = TrainingLoop(
        engine, plan, loader, torch.device("cpu"), NeverStopped(), rows, lambda step: None, quiet
    )
    loop.run(0)
    state = plain_state(engine.module)
    return {"rows": list(rows), "state": state, "margin": min(margins, default=float("inf"))}


def _watch_margins(network: torch.nn.Module) -> list[float]:
    """Collect, for every MoE call, the least gap between a token's two best experts."""
    from ds_moe_mtl.moe import TaskGate

    margins: list[float] = []

    def watch(gate):
        route = gate.route

        def watched(hidden_states, gate_ids, used_token):
            experts = gate.options.num_experts
            logits = hidden_states.detach() @ gate.wg.weight.detach().T
            logits = logits.view(*logits.shape[:-1], -1, experts)
            if gate_ids is not None and used_token is None and experts > 1:
                own = logits.flatten(0, 1)[torch.arange(gate_ids.numel()), gate_ids.flatten()]
                best = own.topk(2, dim=-1).values
                if len(best):
                    margins.append(float((best[:, 0] - best[:, 1]).min()))
            return route(hidden_states, gate_ids, used_token)

        gate.route = watched

    for module in network.modules():
        if isinstance(module, TaskGate):
            watch(module)
    return margins
