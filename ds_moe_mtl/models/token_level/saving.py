"""An upcycled transformers model on disk: weights in safetensors, and how to build it again.

transformers' own loading builds the dense class, finds none of its FFNs in the file, and draws new
ones with no more than a log line. So `save_pretrained` is refused for a model with MoE layers
(plain_saving), and what is written here has names that transformers takes for no model of its own.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from ds_moe_mtl.config.files import whole_file, write_json
from ds_moe_mtl.models.description import CONFIG
from ds_moe_mtl.models.token_level.direct_calls import DirectCalls, routed_ffns
from ds_moe_mtl.models.token_level.experts import FeedForward
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.models.token_level.upcycle import upcycle

MODEL_TYPE = "ds_moe_mtl_upcycled"
WEIGHTS = "upcycled.safetensors"
_WEIGHTS = {"fc1.weight", "fc2.weight"}
_DENSE = (_WEIGHTS, _WEIGHTS | {"fc1.bias", "fc2.bias"})


def save_upcycled(model: nn.Module, folder: str | Path) -> None:
    """Write a model that `upcycle` returned: config.json and upcycled.safetensors.

    Raises ValueError for another model, for one in DeepSpeed's form, and for experts or gates that
    have been wrapped, quantised or pruned.
    """
    hooks = model._forward_pre_hooks.values()
    if not any(isinstance(getattr(hook, "__self__", None), DirectCalls) for hook in hooks):
        raise ValueError(
            f"{type(model).__name__} is not what upcycle() returned; allowed: that very model"
        )
    layers = [ffn.moe for ffn in routed_ffns(model)]
    for layer in layers:
        if type(layer) is not MoELayer:
            raise ValueError(
                f"an MoE layer is a {type(layer).__name__}; allowed: the plain form, before "
                f"to_deepspeed"
            )
        for expert in layer.experts:
            if type(expert) is not FeedForward or expert.state_dict().keys() not in _DENSE:
                raise ValueError(
                    "an expert is no plain FFN any more (wrapped, quantised or pruned layers); "
                    "allowed: experts as upcycle() made them"
                )
    description = {
        "format": 1,
        "model_type": MODEL_TYPE,
        "model_class": type(model).__name__,
        "config": model.config.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "pooler": getattr(model, "pooler", None) is not None,
        "routing": asdict(layers[0].options),
        "expert_dropout": layers[0].experts[0].dropout,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / WEIGHTS) as part:
        save_model(model, part, metadata={"format": "pt"})
    write_json(folder / CONFIG, description)


def load_upcycled(folder: str | Path) -> nn.Module:
    """Return the model that `save_upcycled` wrote, in eval mode and in the stored type.

    Raises ValueError, one line, for a folder of another kind or one that is damaged.
    """
    import transformers

    folder = Path(folder)
    path = folder / CONFIG
    try:
        description = json.loads(path.read_text())
        found = description.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if found != MODEL_TYPE or description.get("format") != 1:
        raise ValueError(f"{folder} holds no model that save_upcycled wrote (format 1)")
    model_class = getattr(transformers, description["model_class"], None)
    if not (
        isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ):
        raise ValueError(f"{path}: transformers has no model {description['model_class']!r}")
    values = dict(description["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = model_class(config)
    if not description["pooler"] and hasattr(model, "pooler"):
        model.pooler = None
    options = RoutingOptions(**description["routing"])
    upcycle(model, options=options, expert_dropout=description["expert_dropout"])
    model.to(getattr(torch, description["dtype"]))
    try:
        load_model(model, folder / WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason:.160}") from error
    return model.eval()
