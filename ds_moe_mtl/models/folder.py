"""From a model folder to its network."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ds_moe_mtl.models.description import (
    CONFIG,
    WEIGHTS,
    read_description,
    read_state,
)
from ds_moe_mtl.models.heads import HeadSpec
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
    if description.get("family") == "bart":
        return _load_bart(description, state, folder, dtype), description
    transformer = described_transformer(description)
    network = build_network(
        transformer,
        description["kind"],
        [HeadSpec(**head) for head in description["heads"]],
        transformer.config.hidden_dropout_prob,
        RoutingOptions(**description["routing"]) if description["routing"] else None,
        gate_of_task=description["gate_of_task"],
        router=_router_options(description),
    )
    stored = next(iter(state.values())).dtype
    try:
        network.to(dtype or stored).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from error
    return network.eval(), description


def _load_bart(description: dict, state: dict, folder: Path, dtype: torch.dtype | None):
    """Return the network in eval mode of a description with family bart."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    values = dict(description["encoder"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    network = RoutedBart(
        AutoModelForSeq2SeqLM.from_config(config),
        len(description["tasks"]),
        _router_options(description),
        num_beams=description["num_beams"],
    )
    network.to(dtype or next(iter(state.values())).dtype)
    missing, unexpected = network.load_state_dict(state, strict=False)
    network.transformer.tie_weights()
    own = network.state_dict()
    stored = {own[name].data_ptr() for name in state if name in own}
    if unexpected or any(own[name].data_ptr() not in stored for name in missing):
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {(missing + unexpected)[0]}")
    return network.eval()


def _router_options(description: dict) -> RouterOptions | None:
    values = description.get("router")
    return values and RouterOptions(**{**values, "layers": tuple(values["layers"])})


def described_transformer(description: Mapping, dropout: float | None = None) -> torch.nn.Module:
    """Return the dense encoder that a description speaks of, newly drawn; dropout None: its own."""
    from transformers import AutoConfig, AutoModel

    encoder = dict(description["encoder"])
    config = AutoConfig.for_model(encoder.pop("model_type"), **encoder)
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    transformer = AutoModel.from_config(config)
    if not description["pooler"] and hasattr(transformer, "pooler"):
        transformer.pooler = None
    return transformer
