"""The network of a run, built from its plan."""

import torch
from torch import nn

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models import HeadSpec, MultiTaskNetwork, build_network
from ds_moe_mtl.models.pretrained import load_transformer, weights_hash
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.training.plan import RunPlan, routing_options


def head_specs(specs: list[TaskSpec]) -> list[HeadSpec]:
    """Return what the heads need to know of the tasks."""
    return [HeadSpec(spec.name, spec.num_outputs, spec.kind == "span") for spec in specs]


def new_network(plan: RunPlan) -> tuple[MultiTaskNetwork, str]:
    """Return the network before training, in float32, and the SHA-256 of the encoder's weights.

    Gates and heads are drawn from run.seed: the same on every rank. Raises UserError for an
    encoder that does not fit.
    """
    config = plan.config
    torch.manual_seed(config.run.seed)
    try:
        transformer = load_transformer(plan.source, config.model.dropout, config.model.pooler)
        sha256 = weights_hash(transformer)
        network = network_around(transformer, plan)
    except ValueError as error:
        raise UserError(str(error)) from error
    return network, sha256


def network_around(transformer: nn.Module, plan: RunPlan) -> MultiTaskNetwork:
    """Return the run's network around an encoder; gates and heads are drawn from run.seed."""
    config = plan.config
    torch.manual_seed(config.run.seed)
    network = build_network(
        transformer,
        config.model.kind,
        head_specs(plan.specs),
        config.model.dropout,
        routing_options(config, len(plan.specs)),
        config.moe.expert_noise,
    )
    if config.train.activation_checkpointing:
        network.checkpoint_activations()
    return network
