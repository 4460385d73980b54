"""BERT and what has its shape: RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE, Data2Vec and others.

Absolute positions in a table, attention through transformers' interface, and in every layer an FFN
of two linear maps, `intermediate.dense` and `output.dense`.
"""

from collections.abc import Iterator

import torch
from torch import nn

from ds_moe_mtl.models.families.family import FFN

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")

_NO_ENCODER = ("is_decoder", "add_cross_attention", "chunk_size_feed_forward")
"""Attributes of a layer that must be off: a decoder's, and an FFN that runs piece by piece."""


def is_encoder(model: nn.Module) -> bool:
    """Return whether the model has BERT's embeddings."""
    embeddings = getattr(model, "embeddings", None)
    names = ("word_embeddings", "position_embeddings")
    return all(isinstance(getattr(embeddings, name, None), nn.Embedding) for name in names)


def layers(model: nn.Module) -> nn.ModuleList:
    """Return the encoder's layers. Raises ValueError for ALBERT, whose depths share one layer."""
    found = getattr(getattr(model, "encoder", None), "layer", None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no list of layers, one for each depth; allowed: BERT's, "
            f"RoBERTa's, ELECTRA's and their like"
        )
    return found


def ffn_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules with `intermediate` and `output.dense`, dense or upcycled."""
    return [module for module in model.modules() if _has_ffn(module)]


def ffn(layer: nn.Module, config) -> FFN:
    """Return a layer's two linear maps and the activation's name.

    Raises ValueError for a layer that is a decoder's, that runs its FFN in pieces, or that holds
    in it more than the two maps and an activation without weights.
    """
    first, second = getattr(layer.intermediate, "dense", None), layer.output.dense
    fault = _fault(layer, first, second)
    if fault:
        raise ValueError(f"{type(layer).__name__} cannot be upcycled: {fault}")
    return FFN(first, second, getattr(config, "hidden_act", None))


def run_ffn(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what the dense layer's FFN makes of x [..., D], before dropout and residual."""
    return layer.output.dense(layer.intermediate(x))


def put_ffn(layer: nn.Module, routed: nn.Module) -> None:
    """Put `routed` where the FFN stood; `output` keeps dropout, residual and what else it has."""
    layer.intermediate = routed
    layer.output.dense = nn.Identity()


def before_residuals(layer: nn.Module) -> list[nn.Module]:
    """Return the ends of attention and of the FFN."""
    return [layer.attention.output, layer.output]


def word_embeddings(model: nn.Module) -> nn.Embedding:
    """Return the table of the tokens."""
    return model.embeddings.word_embeddings


def first_position(model: nn.Module) -> int:
    """Return 0, or what RoBERTa counts from: the position after that of pads."""
    padding = model.embeddings.position_embeddings.padding_idx
    return 0 if padding is None else padding + 1


def max_length(model: nn.Module) -> int:
    """Return the tokens of the longest sequence that has positions."""
    return model.embeddings.position_embeddings.num_embeddings - first_position(model)


def token_types(model: nn.Module) -> int:
    """Return the rows of the table of token types; 0: there is none."""
    table = getattr(model.embeddings, "token_type_embeddings", None)
    return table.num_embeddings if isinstance(table, nn.Embedding) else 0


def head_size(model: nn.Module) -> int:
    """Return the width of an attention head."""
    return model.config.hidden_size // model.config.num_attention_heads


def _has_ffn(module: nn.Module) -> bool:
    return hasattr(module, "intermediate") and hasattr(getattr(module, "output", None), "dense")


def _fault(layer: nn.Module, first: nn.Module | None, second: nn.Module) -> str:
    """Return what two linear maps and an activation would lose of the layer, "" if nothing."""
    for name in _NO_ENCODER:
        if getattr(layer, name, False):
            return f"it has {name} = {getattr(layer, name)}; allowed: an encoder's, in one piece"
    if sum(_has_ffn(module) for module in layer.modules()) > 1:
        return "it has several FFNs; allowed: one"
    for place, linear in (("intermediate.dense", first), ("output.dense", second)):
        if type(linear) is not nn.Linear:
            return f"{place} is a {type(linear).__name__}; allowed: a plain nn.Linear"
        held = {name for name, _ in (*linear.named_parameters(), *linear.named_buffers())}
        if held != {"weight", "bias"}:
            return f"{place} holds {' and '.join(sorted(held))}; allowed: weight and bias"
    if (first.in_features, first.out_features) != (second.out_features, second.in_features):
        return f"its linear maps are {first} and {second}; allowed: one back from the other's width"
    for place, module in _beside(layer.intermediate, first):
        return f"the FFN holds {place} ({type(module).__name__}) too; allowed: an activation"
    for module in (first, second, layer.intermediate):
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return f"a {type(module).__name__} of the FFN has hooks, which would be lost"
    return ""


def _beside(intermediate: nn.Module, first: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of an intermediate, by name, that have weights beside its linear map."""
    if intermediate._parameters or intermediate._buffers:
        yield "intermediate", intermediate
    for name, module in intermediate.named_children():
        if module is not first and any(True for _ in (*module.parameters(), *module.buffers())):
            yield name, module
