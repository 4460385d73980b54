"""BERT and what has its shape: RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE, Data2Vec and others.

Absolute positions in a table, attention through transformers' interface, and in every layer an FFN
of two linear maps, `intermediate.dense` and `output.dense`.
"""

import torch
from torch import nn

from ds_moe_mtl.models.families.family import Family
from ds_moe_mtl.models.families.ffn import FFN, checked

_NO_ENCODER = ("is_decoder", "add_cross_attention", "chunk_size_feed_forward")
"""Attributes of a layer that must be off: a decoder's, and an FFN that runs piece by piece."""


class Bert(Family):
    """Its layers hold `attention`, `intermediate` and `output`."""

    name = "BERT"

    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model has BERT's embeddings."""
        embeddings = getattr(model, "embeddings", None)
        names = ("word_embeddings", "position_embeddings")
        return all(isinstance(getattr(embeddings, name, None), nn.Embedding) for name in names)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the encoder's layers.

        Raises ValueError for ALBERT, whose depths share one layer.
        """
        found = getattr(getattr(model, "encoder", None), "layer", None)
        if not isinstance(found, nn.ModuleList):
            raise ValueError(
                f"{type(model).__name__} has no list of layers, one for each depth; allowed: "
                f"BERT's, RoBERTa's, ELECTRA's and their like"
            )
        return found

    def has_ffn(self, module: nn.Module) -> bool:
        """Return whether a module has `intermediate` and `output.dense`."""
        output = getattr(module, "output", None)
        return hasattr(module, "intermediate") and hasattr(output, "dense")

    def ffn(self, layer: nn.Module, config) -> FFN:
        """Return a layer's FFN of two linear maps.

        Raises ValueError for a layer that is a decoder's, that runs its FFN in pieces, or that
        holds in it more than the two maps and an activation without weights.
        """
        for name in _NO_ENCODER:
            if getattr(layer, name, False):
                raise ValueError(
                    f"{type(layer).__name__} cannot be upcycled: it has {name} = "
                    f"{getattr(layer, name)}; allowed: an encoder's, in one piece"
                )
        if sum(self.has_ffn(module) for module in layer.modules()) > 1:
            raise ValueError(
                f"{type(layer).__name__} cannot be upcycled: it has several FFNs; allowed: one"
            )
        first = getattr(layer.intermediate, "dense", None)
        found = FFN((first,), layer.output.dense, getattr(config, "hidden_act", None))
        return checked(found, ("intermediate.dense", "output.dense"), layer.intermediate, layer)

    def run_ffn(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense layer's FFN makes of x [..., D], before dropout and residual."""
        return layer.output.dense(layer.intermediate(x))

    def put_ffn(self, layer: nn.Module, routed: nn.Module) -> None:
        """Put `routed` where the FFN stood; `output` keeps dropout, residual and what it has."""
        layer.intermediate = routed
        layer.output.dense = nn.Identity()

    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the ends of attention and of the FFN."""
        return [(layer.attention.output, "dense"), (layer.output, "dense")]

    def first_position(self, model: nn.Module) -> int:
        """Return 0, or what RoBERTa counts from: the position after that of pads."""
        padding = model.embeddings.position_embeddings.padding_idx
        return 0 if padding is None else padding + 1

    def max_length(self, model: nn.Module) -> int:
        """Return the tokens of the longest sequence that has positions."""
        table = model.embeddings.position_embeddings
        return table.num_embeddings - self.first_position(model)
