"""The canonical model folder: safetensors, config.json, tokenizer, task map. No pickle.

config.json: {"format": 1, "kind", "encoder" (transformers' config), "encoder_class", "pooler",
"heads", "routing", "gate_of_task", "tasks" (rows as plain values), "about" (free)}; a task_moe
model has "router" too, and one that generates "family": "bart" (models.task_level.routed_bart).
models.folder builds the network that a folder describes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from ds_moe_mtl.config.files import disk_errors_named, write_json
from ds_moe_mtl.models.encoder_files import POINTER
from ds_moe_mtl.models.heads import HeadSpec, to_disk

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_KEYS = {"kind", "encoder", "tasks", "about"}
"""What every description has, whatever its family."""


def save_folder(
    folder: Path, description: dict, state: Mapping[str, torch.Tensor], tokenizer
) -> None:
    """Write a model folder from a network's description and its plain state.

    Heads get their tasks' names there. Every file has the permissions that a new file gets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors_named(folder):
        save_weights(folder, to_disk(state, head_specs_of(description)))
        tokenizer.save_pretrained(folder)
    write_json(folder / CONFIG, description)


def save_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a state as a folder's weights, whole or not at all, under the names that it has."""
    from safetensors.torch import save_file

    tensors, seen = {}, set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or place not in seen:  # tied weights are stored once
            tensors[name] = tensor.detach().cpu().contiguous()
        seen.add(place)
    temporary = folder / (WEIGHTS + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    permissions = temporary.stat().st_mode  # by umask, which safetensors does not ask
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.chmod(permissions)
    temporary.replace(folder / WEIGHTS)


def head_specs_of(description: Mapping) -> list[HeadSpec]:
    """Return the heads that a description speaks of; none of a model that generates."""
    heads = description.get("heads", ())
    weights = [tuple(head.get("class_weights", ())) for head in heads]
    return [
        HeadSpec(**{**head, "class_weights": own}) for head, own in zip(heads, weights, strict=True)
    ]


def read_description(folder: Path) -> dict:
    """Return a model folder's config.json. Raises ValueError, one line, for what is none."""
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a model folder (no {CONFIG}); allowed: the model/ of a finished run"
        )
    refuse_pointers(folder)
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


def refuse_pointers(folder: Path) -> None:
    """Raise ValueError, one line, where git-lfs has left a pointer in a model file's place."""
    for path in (folder / name for name in (CONFIG, WEIGHTS, "tokenizer.json")):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise ValueError(
                        f"{path} is a git-lfs pointer; needed: the file itself (git lfs pull)"
                    )


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """Return a model folder's tensors. Raises ValueError, one line, where they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def model_folder(folder: Path) -> Path:
    """Return the model/ of a run's folder, or the folder itself where it is a model's."""
    inner = Path(folder) / "model"
    return inner if (inner / CONFIG).is_file() else Path(folder)


def encoder_config_of(description: Mapping):
    """Return transformers' configuration of the encoder, or of BART, that a description names.

    Raises ValueError, one line, for a model_type that transformers does not have.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = dict(description["encoder"])
    model_type = values.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{CONFIG}: encoder.model_type = {model_type!r}, which this release of transformers "
            f"does not have"
        )
    return AutoConfig.for_model(model_type, **values)


def encoder_depth(description: Mapping) -> int:
    """Return the number of layers of the encoder that a description names."""
    depth = description["encoder"].get("num_hidden_layers")  # DistilBERT has another name for it
    return depth or encoder_config_of(description).num_hidden_layers
