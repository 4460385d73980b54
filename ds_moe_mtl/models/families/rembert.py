"""RemBERT: BERT with narrow embeddings, widened before the first layer.

Chung et al., "Rethinking Embedding Coupling in Pre-trained Language Models", 2010.12821.
"""

import torch
from torch import nn

from ds_moe_mtl.models.attention.own import PackedMask
from ds_moe_mtl.models.families.megatron_bert import holds_query_key_value
from ds_moe_mtl.models.families.own_attention import OwnAttention


class RemBert(OwnAttention):
    """Its encoder holds `embedding_hidden_mapping_in`."""

    name = "RemBERT"

    def marks(self, encoder: nn.Module) -> bool:
        """Return whether the encoder widens embeddings itself."""
        return isinstance(getattr(encoder, "embedding_hidden_mapping_in", None), nn.Linear)

    def attends(self, module: nn.Module) -> bool:
        """Return whether a module holds `query`, `key` and `value`."""
        return holds_query_key_value(module)

    def run_layers(
        self, model: nn.Module, x: torch.Tensor, mask: PackedMask, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states [1, T, D] of embeddings x [1, T, narrow]."""
        wide = model.encoder.embedding_hidden_mapping_in(x)
        return super().run_layers(model, wide, mask, position_ids)
