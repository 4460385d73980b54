"""The network of a run, built from its plan."""

import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models import HeadSpec, MultiTaskNetwork, build_network
from ds_moe_mtl.models.folder import describe_network
from ds_moe_mtl.models.pretrained import load_generator, load_transformer, weights_hash
from ds_moe_mtl.models.routed_bart import RoutedBart, bart_description
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.training.plan import RunPlan, router_options, routing_options
from ds_moe_mtl.training.stored_routes import load_routes, load_vectors

OPTIONS_HEAD = "options"
"""The one head that scores the options of every task that has them."""


def head_specs(specs: list[TaskSpec]) -> list[HeadSpec]:
    """Return what the heads need to know of the tasks."""
    return [
        HeadSpec(
            spec.name,
            spec.num_outputs,
            spec.kind == "span",
            OPTIONS_HEAD if spec.kind == "options" else "",
        )
        for spec in specs
    ]


def new_network(plan: RunPlan) -> tuple[MultiTaskNetwork, str]:
    """Return the network before training, in float32, and the SHA-256 of the encoder's weights.

    Gates and heads are drawn from run.seed: the same on every rank. Raises UserError for an
    encoder that does not fit.
    """
    config = plan.config
    torch.manual_seed(config.run.seed)
    routed = config.model.kind == "task_moe"
    names = [spec.name for spec in plan.specs]
    try:
        vectors = None
        if routed and config.router.vectors != "random":
            vectors = load_vectors(config.router.vectors, names)
        if plan.generates:
            return _new_generator(plan, router_options(config) if routed else None, vectors)
        transformer = load_transformer(plan.source, config.model.dropout, config.model.pooler)
        sha256 = weights_hash(transformer)
        torch.manual_seed(config.run.seed)
        network = build_network(
            transformer,
            config.model.kind,
            head_specs(plan.specs),
            config.model.dropout,
            routing_options(config, len(plan.specs)),
            config.router.expert_noise if routed else config.moe.expert_noise,
            router=router_options(config) if routed else None,
            vectors=vectors,
        )
        if routed and config.router.routes_from is not None:
            load_routes(network.router, config.router.routes_from, names)
    except ValueError as error:
        raise UserError(str(error)) from error
    return network, sha256


def _new_generator(plan: RunPlan, router, vectors) -> tuple[RoutedBart, str]:
    """Return BART's network and the SHA-256 of its weights; see new_network."""
    config = plan.config
    transformer = load_generator(plan.source, config.model.dropout)
    sha256 = weights_hash(transformer)
    torch.manual_seed(config.run.seed)
    network = RoutedBart(
        transformer,
        len(plan.specs),
        router,
        vectors,
        config.router.expert_noise,
        config.train.label_smoothing,
    )
    if router is not None and config.router.routes_from is not None:
        names = [spec.name for spec in plan.specs]
        load_routes(network.router, config.router.routes_from, names)
    return network, sha256


def described(network, plan: RunPlan, about: dict) -> dict:
    """Return what the config.json of the run's model folder says."""
    tasks, kind = [spec.to_dict() for spec in plan.specs], plan.config.model.kind
    if plan.generates:
        return bart_description(network, kind, tasks, about)
    return describe_network(network, kind, routing_options(plan.config, len(tasks)), tasks, about)
