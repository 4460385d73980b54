"""Training steps of a tiny run on however many ranks there are; what each step left behind."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.engine.engine import start_process_group
from ds_moe_mtl.moe.convert import plain_state
from ds_moe_mtl.moe.layer import TaskMOELayer
from ds_moe_mtl.ranks.rendezvous import rendezvous
from ds_moe_mtl.ranks.watchdog import Watchdog
from ds_moe_mtl.tracking.metrics_log import StepLines
from ds_moe_mtl.training.hooks import Hook, LoopState
from ds_moe_mtl.training.loop import TrainingLoop
from ds_moe_mtl.training.plan import make_plan, task_specs
from ds_moe_mtl.training.run import Run, Shared
from ds_moe_mtl.training.run_folder import RunFolder
from tests.support.tiny import differ_experts, spread_gates, tiny_config

MARGIN = 1e-4
"""Least gap between two experts' logits: float32 rounding (1e-6 here) then flips no token."""


class Rows(list, Hook):
    """A hook that keeps the rows, on every rank."""

    def after_step(self, state: LoopState) -> None:
        if len(state.row) > 1:
            self.append(state.row)


class NeverStopped:
    """A StopRequest that nobody makes."""

    def agreed(self, device: torch.device) -> bool:
        return False


def quiet(line: str) -> None:
    """Say nothing."""


class TinyRun(Run):
    """A tiny run on all ranks of the group, ready to step; it leaves no files but skipped.jsonl."""

    def go(self, first_step: int = 0, stop=None) -> LoopState:
        """Take the steps after `first_step` and keep their rows; return where the run stands."""
        self.first_step, self.rows = first_step, Rows()
        if stop is not None:
            self.shared = replace(self.shared, stop=stop)
        return TrainingLoop(self, [self.rows]).train()

    def save(self, step: int) -> None:
        """Write nothing."""


def spread(network: torch.nn.Module) -> None:
    """Spread the gates and make the experts differ."""
    spread_gates(network)
    differ_experts(network)


def build_tiny(
    folder: str,
    sections: dict,
    deepspeed: Path,
    device: str = "cpu",
    prepare: Callable[[torch.nn.Module], None] = spread,
) -> TinyRun:
    """Return a tiny run over what write_tiny left in `folder`.

    It is not prepared, so its network is plain. device is what the configuration is checked for:
    "cuda" lets fp16 pass. prepare: changes the network before the engine has it.
    """
    ranks = rendezvous(os.environ)
    here = start_process_group(ranks)
    config = tiny_config(Path(folder), deepspeed=str(deepspeed), **sections)
    run = TinyRun(make_plan(config, task_specs(config), quiet), RunFolder(config, quiet))
    resolved = resolve_deepspeed(config, dist.get_world_size(), device)
    run.build(resolved, dist.get_world_size())
    prepare(run.network)
    unwatched = Watchdog(ranks, config.train.hang_timeout)  # not entered
    run.shared = Shared(resolved, here, ranks, NeverStopped(), unwatched, quiet)
    return run


def start_tiny(
    folder: str,
    sections: dict,
    deepspeed: Path,
    device: str = "cpu",
    prepare: Callable[[torch.nn.Module], None] = spread,
) -> TinyRun:
    """Return build_tiny's run, ready to step."""
    run = build_tiny(folder, sections, deepspeed, device, prepare)
    run.prepare(run.shared)
    run.watch_skipped(StepLines(Path(folder) / f"skipped{dist.get_rank()}.jsonl", -1))
    return run


def train_tiny(folder: str, sections: dict, deepspeed: Path) -> dict:
    """Return {"rows", "state", "margin"} of a tiny run trained to its end.

    rows: what the run logged; state: the final plain state (rank 0); margin: the least difference
    between the two best experts' logits that was met on this rank.
    """
    run = start_tiny(folder, sections, deepspeed)
    margins = _watch_margins(run.engine.module)
    run.go()
    state = plain_state(run.engine.module)
    return {"rows": list(run.rows), "state": state, "margin": min(margins, default=float("inf"))}


def assert_same_training(found: dict, expected: dict) -> None:
    """Assert that two runs of train_tiny (rank 0's) logged the same and ended with one model."""
    for want, got in zip(expected["rows"], found["rows"], strict=True):
        for key in ("loss", "grad_norm", *(k for k in want if k.startswith(("loss/", "dev/")))):
            assert got[key] == pytest.approx(want[key], rel=2e-5, abs=1e-6), (want["step"], key)
    for name, tensor in expected["state"].items():
        # Adam's first steps move each weight by about lr = 1e-3, whatever its gradient's size:
        # where a gradient is rounding alone, so is its sign. Hence the mean, not the largest.
        error = (found["state"][name] - tensor).double().abs().mean()
        assert error < 2e-5, (name, float(error))


def _watch_margins(network: torch.nn.Module) -> list[float]:
    """Collect, for every MoE call, the least gap between a token's two best experts."""
    margins: list[float] = []

    def watch(layer, arguments):
        hidden_states, used_token, gate_ids, *_ = arguments
        experts = layer.gate.options.num_experts
        logits = hidden_states.detach() @ layer.gate.wg.weight.detach().T
        logits = logits.view(*logits.shape[:-1], -1, experts)
        if gate_ids is not None and used_token is None and experts > 1:
            tokens = torch.arange(gate_ids.numel(), device=gate_ids.device)
            own = logits.flatten(0, 1)[tokens, gate_ids.flatten()]
            best = own.topk(2, dim=-1).values
            if len(best):
                margins.append(float((best[:, 0] - best[:, 1]).min()))

    for module in network.modules():
        if isinstance(module, TaskMOELayer):
            module.register_forward_pre_hook(watch)
    return margins
