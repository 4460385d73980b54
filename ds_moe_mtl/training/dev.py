"""Scores on dev and test splits over all ranks: each example once, the same calls on every rank."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

from ds_moe_mtl.data import evaluation_batches
from ds_moe_mtl.evaluation.outputs import assemble, batch_outputs, task_result
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.models.token_level.loads import TokenCounts, load_shares
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.training.plan import RunPlan


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation after `step` steps found, by task; the same on every rank."""

    step: int
    results: dict[str, dict] = field(default_factory=dict)
    """{"metric", "value" in percent, "examples"}."""
    losses: dict[str, float] = field(default_factory=dict)
    """The mean loss of an example, where it was asked for."""
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """[N, C], rows in the dev split's order: logits, or the tokens of generated answers."""
    routes: dict[str, np.ndarray] = field(default_factory=dict)
    """Each expert's share of the task's tokens [L, E]; none of a model without token experts."""


def evaluate(
    network: torch.nn.Module,
    plan: RunPlan,
    device: torch.device,
    step: int,
    wants_losses: bool = False,
    goes_on: Callable[[], bool] = lambda: True,
) -> Evaluation | None:
    """Return the network's evaluation on every task's dev split; a collective call.

    goes_on() is called after each batch, on all ranks alike, and must be one answer there: where
    it says no, the evaluation ends without a result, None.
    """
    training = network.training
    network.eval()
    found = Evaluation(step)
    complete = all(
        _evaluate_task(network, plan, device, task, found, wants_losses, goes_on)
        for task in range(len(plan.specs))
        if plan.dev[task] is not None
    )
    network.train(training)
    return found if complete else None


def _evaluate_task(
    network: torch.nn.Module,
    plan: RunPlan,
    device: torch.device,
    task: int,
    found: Evaluation,
    wants_losses: bool,
    goes_on: Callable[[], bool],
) -> bool:
    """Put a task's part into `found` and return True, or return False where it does not go on."""
    spec, split = plan.specs[task], plan.dev[task]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine, loss = [], 0.0
    with TokenCounts(network) as counted:
        for batch in evaluation_batches(split, task, rank, world_size):
            mine.append(batch_outputs(network, batch, spec.num_outputs, device))
            if wants_losses:
                loss += _loss_sum(network, batch.to(device))
            if not goes_on():
                return False
    everyones = [None] * world_size
    dist.all_gather_object(everyones, (mine, loss, counted.counts_LE()))
    shares_LE = load_shares([each[2] for each in everyones])
    if shares_LE is not None:
        found.routes[spec.name] = shares_LE
    pieces = [piece for each in everyones for piece in each[0]]
    if wants_losses:
        found.losses[spec.name] = sum(each[1] for each in everyones) / split.num_examples
    outputs_NC = assemble(pieces, split, spec.num_outputs)
    found.outputs[spec.name] = outputs_NC
    found.results[spec.name] = task_result(spec, outputs_NC, split, plan.tokenizer)
    return True


def score_test(
    model: Path, plan: RunPlan, device: torch.device, progress: Callable[[], None]
) -> dict[str, dict]:
    """Return the test results by task, of those that have test rows; a collective call.

    model: the run's finished model folder, which every rank reads: what is scored is what will be
    used, thresholds included. progress is called after each batch.
    """
    if all(split is None for split in plan.test):
        return {}
    network, description = load_folder(model)
    specs = [TaskSpec.from_dict(task) for task in description["tasks"]]

    def goes_on() -> bool:
        progress()
        return True

    plan = replace(plan, specs=specs, dev=plan.test)
    return evaluate(network.to(device), plan, device, plan.total_steps, False, goes_on).results


@torch.no_grad()
def _loss_sum(network: Network, batch) -> float:
    """Return the sum of a batch's examples' losses."""
    losses_B = network.losses(network(**network_inputs(batch)), batch)
    return float((losses_B * batch.weights_B).sum())
