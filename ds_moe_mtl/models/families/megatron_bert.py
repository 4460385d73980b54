"""MegatronBERT: BERT with its norms before attention and FFN, and one after the last layer.

Shoeybi et al., "Megatron-LM", 1909.08053, sec. 5.3.
"""

import torch
from torch import nn

from ds_moe_mtl.models.attention.own import PackedMask
from ds_moe_mtl.models.families.own_attention import OwnAttention


class MegatronBert(OwnAttention):
    """Its layers and its encoder hold `ln`."""

    name = "MegatronBERT"

    def marks(self, encoder: nn.Module) -> bool:
        """Return whether the encoder ends in a norm `ln`."""
        return isinstance(getattr(encoder, "ln", None), nn.LayerNorm)

    def attends(self, module: nn.Module) -> bool:
        """Return whether a module holds `query`, `key` and `value`."""
        return holds_query_key_value(module)

    def run_layers(
        self, model: nn.Module, x: torch.Tensor, mask: PackedMask, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states [1, T, D], normed."""
        return model.encoder.ln(super().run_layers(model, x, mask, position_ids))


def holds_query_key_value(module: nn.Module) -> bool:
    """Return whether a module is a self-attention of three maps named as BERT's."""
    maps = [getattr(module, name, None) for name in ("query", "key", "value")]
    return hasattr(module, "attention_head_size") and all(isinstance(m, nn.Module) for m in maps)
