"""The canonical model folder: safetensors, config.json, tokenizer, task map. No pickle.

config.json: {"format": 1, "kind", "encoder" (transformers' config), "encoder_class", "pooler",
"heads", "routing", "gate_of_task", "tasks" (rows as plain values), "about" (free)}; a task_moe
model has "router" too, and one that generates "family": "bart" (models.routed_bart).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ds_moe_mtl.models.gating import RoutingOptions
from ds_moe_mtl.models.heads import HeadSpec
from ds_moe_mtl.models.multitask import SPARSE_KINDS, MultiTaskNetwork, build_network
from ds_moe_mtl.models.task_router import RouterOptions, TaskRouter

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_KEYS = {"kind", "encoder", "tasks", "about"}
"""What every description has, whatever its family."""


def describe_network(
    network: MultiTaskNetwork,
    kind: str,
    routing: RoutingOptions | None,
    tasks: list[dict],
    about: Mapping,
) -> dict:
    """Return what config.json says of a network, enough to build it again."""
    transformer = network.encoder.transformer
    router = network.router
    return {
        "format": FORMAT,
        "kind": kind,
        "encoder": transformer.config.to_dict(),
        "encoder_class": type(transformer).__name__,
        "pooler": getattr(transformer, "pooler", None) is not None,
        "heads": [asdict(spec) for spec in network.heads.specs],
        "routing": asdict(routing) if kind in SPARSE_KINDS else None,
        "gate_of_task": network.gate_of_task.tolist(),
        **({"router": router_values(router)} if router is not None else {}),
        "tasks": tasks,
        "about": dict(about),
    }


def save_folder(
    folder: Path, description: dict, state: Mapping[str, torch.Tensor], tokenizer
) -> None:
    """Write a model folder from a network's description and its plain state."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, seen = {}, set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or place not in seen:  # tied weights are stored once
            tensors[name] = tensor.detach().cpu().contiguous()
        seen.add(place)
    temporary = folder / (WEIGHTS + ".tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    tokenizer.save_pretrained(folder)
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict:
    """Return a model folder's config.json. Raises ValueError, one line, for what is none."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a model folder (no {CONFIG}); allowed: the model/ of a finished run"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:  # of JSON or UTF-8
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if (
        not isinstance(description, dict)
        or description.get("format") != FORMAT
        or not description.keys() >= _KEYS
    ):
        raise ValueError(f"{path} is not a ds_moe_mtl model (format {FORMAT})")
    return description


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

    from ds_moe_mtl.models.routed_bart import RoutedBart

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


def router_values(router: TaskRouter) -> dict:
    """Return a router's options, vector_size that of the vectors it has."""
    values = asdict(router.options)
    if router.options.route == "learned":
        values["vector_size"] = router.vectors.shape[1]
    return values


def _router_options(description: dict) -> RouterOptions | None:
    values = description.get("router")
    return values and RouterOptions(**{**values, "layers": tuple(values["layers"])})


def model_folder(folder: Path) -> Path:
    """Return the model/ of a run's folder, or the folder itself where it is a model's."""
    inner = Path(folder) / "model"
    return inner if (inner / CONFIG).is_file() else Path(folder)


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """Return a model folder's tensors. Raises ValueError, one line, where they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


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
