"""The network of a run, built from its plan."""

from pathlib import Path

import torch
from torch import nn

from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.models import MultiTaskNetwork, build_network
from ds_moe_mtl.models.description import (
    head_specs_of,
    model_folder,
    read_description,
    read_state,
)
from ds_moe_mtl.models.encoder_check import check_encoder
from ds_moe_mtl.models.folder import described_transformer
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.models.pretrained import (
    load_generator,
    load_transformer,
    state_hash,
    weights_hash,
)
from ds_moe_mtl.models.task_fit import head_specs
from ds_moe_mtl.models.task_level.routed_bart import RoutedBart
from ds_moe_mtl.models.task_level.stored_routes import load_routes, load_vectors
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from ds_moe_mtl.models.transfer import RANDOM, continued_state, form_of, train_only_new
from ds_moe_mtl.training.plan import RunPlan, routing_options


def new_network(plan: RunPlan) -> tuple[MultiTaskNetwork, str]:
    """Return the network before training, in float32, and the SHA-256 of the encoder's weights.

    Gates and heads are drawn from run.seed: the same on every rank. With start.model the weights
    are that model's, and so is the hash. Raises UserError for what does not fit.
    """
    config = plan.config
    if config.start.model is not None:
        try:
            return _continued(plan)
        except ValueError as error:
            raise UserError(str(error)) from error
    torch.manual_seed(config.run.seed)
    routed = config.model.kind == "task_moe"
    names = [spec.name for spec in plan.specs]
    try:
        vectors = None
        if routed and config.router.vectors != "random":
            vectors = load_vectors(config.router.vectors, names)
        if plan.generates:
            return _new_generator(plan, _router(config), vectors)
        model = config.model
        transformer = load_transformer(plan.source, model.dropout, model.pooler, model.kind)
        sha256 = weights_hash(transformer)
        expert_noise = config.router.expert_noise if routed else config.moe.expert_noise
        network = network_around(transformer, plan, expert_noise, vectors)
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
    network.use_kernels(config.train.encoder_kernels)
    if router is not None and config.router.routes_from is not None:
        names = [spec.name for spec in plan.specs]
        load_routes(network.router, config.router.routes_from, names)
    return network, sha256


def described(network: Network, plan: RunPlan, about: dict) -> dict:
    """Return what the config.json of the run's model folder says."""
    tasks = [spec.to_dict() for spec in (*plan.specs, *plan.kept)]
    kind = plan.config.model.kind
    return network.description(kind, routing_options(plan.config, len(tasks)), tasks, about)


def _continued(plan: RunPlan) -> tuple[MultiTaskNetwork, str]:
    """Return the network of stage two, and the SHA-256 of the model that it starts from."""
    config = plan.config
    folder = model_folder(Path(config.start.model))
    description, state = read_description(folder), read_state(folder)
    _check_form(config, description)
    transformer = described_transformer(description, config.model.dropout)
    check_encoder(transformer, config.start.model, description["kind"])
    network = network_around(transformer, plan)
    start, kept = config.start, [spec.name for spec in plan.kept]
    network.load_state_dict(
        continued_state(network, description, state, start.gate, start.head, plan.specs, kept)
    )
    if start.train == "new":
        _check_new([spec.name for spec in plan.specs], description)
        known = [spec.key for spec in head_specs_of(description)]
        train_only_new(network, config.model.kind, known)
    return network, state_hash(state)


def with_untrained(state: dict, network: Network, plan: RunPlan) -> dict:
    """Return a run's state with all that start.train = new leaves alone as it was stored.

    In 16 bits the run itself has it rounded. state: in the plain form.
    """
    start = plan.config.start
    if start.train != "new":
        return state
    folder = model_folder(Path(start.model))
    gates = {spec.name: RANDOM for spec in plan.specs}  # theirs are the trained ones
    return continued_state(
        network,
        read_description(folder),
        read_state(folder),
        gates,
        "auto",
        plan.specs,
        [spec.name for spec in plan.kept],
        drawn=state,
    )


def _check_new(names: list[str], description: dict) -> None:
    """Raise ValueError for tasks of a model of which nothing but new tasks is to be trained."""
    there = [task["name"] for task in description["tasks"] if task["name"] in names]
    if there:
        raise ValueError(
            f"start.train = new, but tasks names {', '.join(there)}, which the model has and which "
            "would be changed; allowed: all, or new tasks only"
        )


def _check_form(config: RunConfig, description: dict) -> None:
    """Raise ValueError where the configuration contradicts the model it starts from."""
    kind = description["kind"]
    wanted = {"model.kind": (config.model.kind, kind)}
    wanted["model.pooler"] = (config.model.pooler, description["pooler"])
    for key, there in form_of(description).items():
        wanted[f"moe.{key}"] = (_as_given(getattr(config.moe, key)), _as_given(there))
    for key, (given, there) in wanted.items():
        dense = {str(given), str(there)} == {"single", "mt_dense"}  # one architecture
        if given != there and not dense:
            raise ValueError(
                f"{key} = {given}, but start.model = {config.start.model} has {there}; "
                f"allowed: {key}={there}"
            )


def _router(config: RunConfig) -> RouterOptions | None:
    routed = config.model.kind == "task_moe"
    return RouterOptions.from_section(config.router, config.run.seed) if routed else None


def _as_given(value):
    """Return a configuration's value as a YAML has it: a tuple as a list."""
    return list(value) if isinstance(value, tuple) else value


def network_around(
    transformer: nn.Module,
    plan: RunPlan,
    expert_noise: float = 0.0,
    vectors: torch.Tensor | None = None,
) -> MultiTaskNetwork:
    """Return the run's network around an encoder; gates and heads are drawn from run.seed.

    vectors [tasks, width]: of a task router; None: drawn.
    """
    config = plan.config
    torch.manual_seed(config.run.seed)
    network = build_network(
        transformer,
        config.model.kind,
        head_specs([*plan.specs, *plan.kept]),
        config.model.dropout,
        routing_options(config, len(plan.specs) + len(plan.kept)),
        expert_noise,
        expert_dropout=config.moe.expert_dropout,
        router=_router(config),
        vectors=vectors,
    )
    network.use_kernels(config.train.encoder_kernels)
    network.tied_steps = config.moe.tied_steps if config.model.kind in SPARSE_KINDS else 0
    if config.train.activation_checkpointing:
        network.checkpoint_activations()
    return network
