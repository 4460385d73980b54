"""A model folder that is transformers' too: our description, and what transformers reads beside it.

config.json     our keys (models.description) and model_type, auto_map, id2label, the task in use
model.safetensors, tokenizer files
configuration_ds_moe_mtl.py, modeling_ds_moe_mtl.py   run by transformers with trust_remote_code

The heads stand in the weights by their place, because a task's name may be any word.
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ds_moe_mtl.config.files import write_json
from ds_moe_mtl.models.description import CONFIG, save_weights
from ds_moe_mtl.models.folder import described_transformer
from ds_moe_mtl.models.multitask import MultiTaskNetwork
from ds_moe_mtl.models.network import Network
from ds_moe_mtl.models.portable.configuration_ds_moe_mtl import DsMoeMtlConfig
from ds_moe_mtl.models.token_level.context import RoutedFFN
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from ds_moe_mtl.models.tokenizer import ENCODER_LENGTH
from ds_moe_mtl.tasks import TaskSpec

CODE = ("configuration_ds_moe_mtl.py", "modeling_ds_moe_mtl.py")
KINDS = {
    "classification": "SequenceClassification",
    "multilabel": "SequenceClassification",
    "regression": "SequenceClassification",
    "ranking": "SequenceClassification",
    "options": "SequenceClassification",
    "span": "SequenceClassification",
    "tags": "TokenClassification",
    "answer": "QuestionAnswering",
}
"""Kinds of tasks that a portable folder can answer, and the AutoModelFor... that answers them."""

_MODEL = "modeling_ds_moe_mtl.DsMoeMtlFor"
_AUTO = {
    "AutoConfig": "configuration_ds_moe_mtl.DsMoeMtlConfig",
    "AutoModel": f"{_MODEL}SequenceClassification",
    **{f"AutoModelFor{name}": f"{_MODEL}{name}" for name in dict.fromkeys(KINDS.values())},
}


def portable_config(network: Network, description: Mapping, task: str | None = None) -> dict:
    """Return config.json of a portable folder; task: the one in use at first, None for the first.

    Raises ValueError, one line, for a model that transformers cannot be given, and for a task that
    it does not have.
    """
    fault = _fault(network, description)
    if fault:
        raise ValueError(f"no folder for transformers can be made: {fault}")
    values = copy.deepcopy(dict(description))
    values["tasks"] = [TaskSpec.from_dict(row).to_dict() for row in values["tasks"]]
    for row in values["tasks"]:  # a folder that others will see tells no path of this machine
        row.update({key: Path(value).name for key, value in row.items() if key.endswith("_file")})
    values |= _form(network, description)
    own = {key: value for key, value in values.items() if key in _OWN_ARGUMENTS}
    config = DsMoeMtlConfig(**own, task=task)
    _check_weights(network, config)
    return {
        **values,
        "model_type": DsMoeMtlConfig.model_type,
        "architectures": [f"DsMoeMtlFor{KINDS[config.task_row(config.task)['kind']]}"],
        "auto_map": dict(_AUTO),
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "task": config.task,
        "id2label": config.id2label,
        "label2id": config.label2id,
        "problem_type": config.problem_type,
    }


_FORM = ("expert_places", "emptied_places", "ffn", "first_position", "token_types", "dropout")
_OWN_ARGUMENTS = ("encoder", "heads", "tasks", "routing", "gate_of_task", "pooler", *_FORM)


def _form(network: MultiTaskNetwork, description: Mapping) -> dict:
    """Return what DsMoeMtlConfig has to know of a network's modules, whatever its family."""
    transformer = network.encoder.transformer
    modules = dict(transformer.named_modules(remove_duplicate=False))
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        dense = dict(described_transformer(description).named_modules())
    emptied = [
        place
        for place, module in modules.items()
        if type(module) is nn.Identity and type(dense.get(place, module)) is not nn.Identity
    ]
    ffn = None
    for routed in routed_ffns(transformer)[:1]:
        expert, shared = routed.moe.experts[0], routed.moe.shared
        ffn = {
            "inner": expert.inner,
            "shared": 0 if shared is None else shared.inner,
            "activation": expert.activation,
            "bias": expert.fc1.bias is not None,
        }
    places = [place for place, module in modules.items() if isinstance(module, RoutedFFN)]
    encoder = network.encoder
    told = (places, emptied, ffn, encoder.first_position, encoder.token_types)
    return dict(zip(_FORM, (*told, network.heads.dropout.p), strict=True))


def _check_weights(network: MultiTaskNetwork, config: DsMoeMtlConfig) -> None:
    """Raise ValueError where the code that travels has another place for a weight than we have."""
    from ds_moe_mtl.models.portable.modeling_ds_moe_mtl import DsMoeMtlForSequenceClassification

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = DsMoeMtlForSequenceClassification(config)
    ours, theirs = (
        {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        for module in (network, model)
    )
    if ours != theirs:
        name = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"no folder for transformers can be made: {name} is {ours.get(name)} here and "
            f"{theirs.get(name)} in its code; allowed: encoders of transformers as they are"
        )


def save_portable(folder: Path, network: Network, config: dict, tokenizer) -> None:
    """Write a portable folder: config is what `portable_config` gave.

    The tokenizer cuts at the longest that a task was trained with.
    """
    tokenizer = cutting_tokenizer(tokenizer, max(row["max_length"] for row in config["tasks"]))
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, network.state_dict())
    tokenizer.save_pretrained(folder)
    for name in CODE:
        shutil.copyfile(Path(__file__).parent / name, folder / name)
    write_json(folder / CONFIG, config)


def cutting_tokenizer(tokenizer, length: int):
    """Return a copy of a tokenizer that transformers cuts at `length` tokens.

    The encoder's own length stands beside it (tokenizer.ENCODER_LENGTH): this package goes by that.
    """
    cutting = copy.deepcopy(tokenizer)
    cutting.init_kwargs[ENCODER_LENGTH] = tokenizer.model_max_length
    cutting.model_max_length = min(length, tokenizer.model_max_length)
    return cutting


def _fault(network: Network, description: Mapping) -> str:
    """Return why transformers cannot be given the model, "" where it can."""
    kind = description["kind"]
    if description.get("family") == "bart" or kind == "task_moe":
        return (
            f"a {kind} model routes whole layers by task or writes its answers; allowed: single, "
            f"mt_dense, mt_switch and mt_tag of an encoder"
        )
    for row in description["tasks"]:
        if row["kind"] not in KINDS:
            return f"task {row['name']!r} is {row['kind']}; allowed: {', '.join(KINDS)}"
    return ""


def opened(network: Network, description: Mapping):
    """Return the portable model of a network, in eval mode; it shares the weights.

    Raises ValueError as `portable_config`.
    """
    from ds_moe_mtl.models.portable.modeling_ds_moe_mtl import DsMoeMtlForSequenceClassification

    config = DsMoeMtlConfig(**portable_config(network, description))
    config._attn_implementation = "eager"
    model = DsMoeMtlForSequenceClassification(config)
    model.load_state_dict(network.state_dict(), assign=True)
    return model.eval()
