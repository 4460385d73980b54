"""Scores on the dev splits over all ranks: each example once, the same calls on every rank."""

from collections.abc import Callable

import torch
from torch import distributed as dist

from ds_moe_mtl.data import evaluation_batches
from ds_moe_mtl.evaluation.outputs import assemble, batch_outputs, task_result
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.training.plan import RunPlan

TOKENS_PER_BATCH = 8192


def evaluate(
    network: torch.nn.Module,
    plan: RunPlan,
    device: torch.device,
    progress: Callable[[], None],
    losses: dict[str, float] | None = None,
) -> dict[str, dict]:
    """Return every task's {"metric", "value", "examples"} on its dev split; a collective call.

    progress() is called after each batch. losses: where given, each task's mean loss an example
    is put into it.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    training = network.training
    network.eval()
    results = {}
    for task, (spec, split) in enumerate(zip(plan.specs, plan.dev, strict=True)):
        batches = evaluation_batches(split, task, TOKENS_PER_BATCH, rank, world_size)
        mine, loss = [], 0.0
        for batch in batches:
            mine.append(batch_outputs(network, batch, spec.num_outputs, device))
            if losses is not None:
                loss += _loss_sum(network, batch.to(device))
            progress()
        everyones = [None] * world_size
        dist.all_gather_object(everyones, (mine, loss))
        pieces = [piece for rank_pieces, _ in everyones for piece in rank_pieces]
        if losses is not None:
            losses[spec.name] = sum(part for _, part in everyones) / split.num_examples
        outputs_NC = assemble(pieces, split, spec.num_outputs)
        results[spec.name] = task_result(spec, outputs_NC, split, plan.tokenizer)
    network.train(training)
    return results


@torch.no_grad()
def _loss_sum(network: Network, batch) -> float:
    """Return the sum of a batch's examples' losses."""
    losses_B = network.losses(network(**network_inputs(batch)), batch)
    return float((losses_B * batch.weights_B).sum())
