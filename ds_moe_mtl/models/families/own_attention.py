"""Encoders of BERT's shape whose attention is code of their own: how they run packed.

What DeBERTa's, MPNet's, MegatronBERT's and RemBERT's files have in common; no family by itself.
T tokens, D hidden size.
"""

from abc import abstractmethod
from functools import partial

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ds_moe_mtl.models.attention.choice import PACKED_EAGER
from ds_moe_mtl.models.attention.own import PackedMask, attend, heads_of
from ds_moe_mtl.models.families.bert import Bert


class OwnAttention(Bert):
    """Its encoder and its self-attention modules get a forward of ours, each by itself.

    Both do what their class does unless they are called packed, so that the model stays
    transformers' for anybody else, and a copy of it is bound to itself.
    """

    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model has a table of tokens, a list of layers and `marks`."""
        table = getattr(getattr(model, "embeddings", None), "word_embeddings", None)
        encoder = getattr(model, "encoder", None)
        has_layers = isinstance(getattr(encoder, "layer", None), nn.ModuleList)
        return isinstance(table, nn.Embedding) and has_layers and self.marks(encoder)

    @abstractmethod
    def marks(self, encoder: nn.Module) -> bool:
        """Return whether a model's `encoder` holds what only this family's does."""

    @abstractmethod
    def attends(self, module: nn.Module) -> bool:
        """Return whether a module is a self-attention of this family's."""

    def ffn_layers(self, model: nn.Module) -> list[nn.Module]:
        """Return the layers with an FFN of a model that is or holds an encoder of the family."""
        held = any(self.is_encoder(module) for module in model.modules())
        return super().ffn_layers(model) if held else []

    def pack(self, model: nn.Module) -> None:
        """Give the encoder and its self-attention modules a forward that takes a plan."""
        model.packed_attention = PACKED_EAGER
        for module in model.modules():
            if self.attends(module):
                module.forward = partial(_attention_forward, self, module)
        model.forward = partial(_model_forward, self, model)

    def use_attention(self, model: nn.Module, name: str) -> None:
        """Have packed calls run the attention of that name; others run the class's own."""
        model.packed_attention = name

    def run_layers(
        self, model: nn.Module, x: torch.Tensor, mask: PackedMask, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states [1, T, D] of embedded tokens x [1, T, .].

        position_ids [1, T]: where each token stands in its sequence.
        """
        return through(model.encoder.layer, x, mask)

    def attend(
        self, module: nn.Module, x: torch.Tensor, mask: PackedMask, *more, **others
    ) -> tuple[torch.Tensor | None, ...]:
        """Return what the self-attention of x [1, T, D] gives, as its class does, no weights.

        more, others: the layer's further arguments to its attention.
        """
        size = module.attention_head_size
        heads = [heads_of(each(x), size) for each in (module.query, module.key, module.value)]
        return attend(module, heads, mask, size**-0.5), None


def through(layers: nn.ModuleList, x: torch.Tensor, mask: PackedMask, *more) -> torch.Tensor:
    """Return x [1, T, D] after each layer in order; more: arguments that each gets besides."""
    for layer in layers:
        x = layer(x, mask, *more)[0]
    return x


def _model_forward(family: OwnAttention, model: nn.Module, *args, packing=None, **inputs):
    """Return what the model gives, of packed tokens where there is a plan.

    inputs: of packed tokens input_ids [1, T], position_ids and token types, where it takes them.
    """
    if packing is None:
        return type(model).forward(model, *args, **inputs)
    x = model.embeddings(**inputs)
    mask = PackedMask(model.packed_attention, packing)
    x = family.run_layers(model, x, mask, inputs["position_ids"])
    return BaseModelOutput(last_hidden_state=x)


def _attention_forward(
    family: OwnAttention, module: nn.Module, hidden_states, attention_mask=None, *more, **others
):
    """Return what the self-attention gives, of packed tokens where the mask is a plan."""
    if isinstance(attention_mask, PackedMask):
        return family.attend(module, hidden_states, attention_mask, *more, **others)
    return type(module).forward(module, hidden_states, attention_mask, *more, **others)
