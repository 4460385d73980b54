"""From a model folder to its network."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ds_moe_mtl.models.description import (
    CONFIG,
    WEIGHTS,
    encoder_config_of,
    head_specs_of,
    read_description,
    read_state,
)
from ds_moe_mtl.models.encoder_check import check_encoder
from ds_moe_mtl.models.families import dropout_of, set_dropout
from ds_moe_mtl.models.multitask import MultiTaskNetwork, build_network
from ds_moe_mtl.models.task_level.routed_bart import RoutedBart
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from ds_moe_mtl.models.token_level.gating import RoutingOptions


def load_folder(
    folder: Path, dtype: torch.dtype | None = torch.float32
) -> tuple[MultiTaskNetwork, dict]:
    """Return (network in eval mode, description) of a model folder.

    dtype None keeps the stored one. Raises ValueError, one line, for a folder that does not fit.
    """
    folder = Path(folder)
    description = read_description(folder)
    state = read_state(folder)
    network = described_network(description, str(folder))
    network.to(dtype or next(iter(state.values())).dtype)
    try:
        _load_state(network, state)
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {fault}") from error
    return network.eval(), description


def described_network(description: Mapping, name: str) -> MultiTaskNetwork | RoutedBart:
    """Return the network that a description speaks of, in the plain form and newly drawn.

    name: what a message calls it. Raises ValueError, one line, for an encoder that does not run
    packed as it runs alone.
    """
    if description.get("family") == "bart":
        return _described_bart(description)
    transformer = described_transformer(description)
    check_encoder(transformer, name)
    return build_network(
        transformer,
        description["kind"],
        head_specs_of(description),
        dropout_of(transformer.config),
        RoutingOptions(**description["routing"]) if description["routing"] else None,
        gate_of_task=description["gate_of_task"],
        router=_router_options(description),
    )


def _described_bart(description: Mapping) -> RoutedBart:
    from transformers import AutoModelForSeq2SeqLM

    return RoutedBart(
        AutoModelForSeq2SeqLM.from_config(encoder_config_of(description)),
        len(description["tasks"]),
        _router_options(description),
        num_beams=description["num_beams"],
    )


def _load_state(network: MultiTaskNetwork | RoutedBart, state: Mapping[str, torch.Tensor]) -> None:
    """Load a stored state, in which BART's tied weights stand once. Raises RuntimeError."""
    if not isinstance(network, RoutedBart):
        network.load_state_dict(state)
        return
    missing, unexpected = network.load_state_dict(state, strict=False)
    network.transformer.tie_weights()
    own = network.state_dict()
    stored = {own[name].data_ptr() for name in state if name in own}
    if unexpected or any(own[name].data_ptr() not in stored for name in missing):
        raise RuntimeError((missing + unexpected)[0])


def _router_options(description: dict) -> RouterOptions | None:
    values = description.get("router")
    return values and RouterOptions(**{**values, "layers": tuple(values["layers"])})


def described_transformer(description: Mapping, dropout: float | None = None) -> torch.nn.Module:
    """Return the dense encoder that a description speaks of, newly drawn; dropout None: its own.

    Raises ValueError, one line, where transformers makes another class of its configuration.
    """
    from transformers import AutoModel

    config = encoder_config_of(description)
    if dropout is not None:
        set_dropout(config, dropout)
    transformer = AutoModel.from_config(config)
    made, told = type(transformer).__name__, description["encoder_class"]
    if made != told:
        raise ValueError(
            f"{CONFIG}: encoder_class = {told}, but transformers makes {made} of model_type "
            f"{config.model_type}; allowed: the class that transformers makes"
        )
    if not description["pooler"] and hasattr(transformer, "pooler"):
        transformer.pooler = None
    return transformer
