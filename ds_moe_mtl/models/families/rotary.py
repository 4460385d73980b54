"""Encoders with rotary positions and their layers in `layers`; no family by itself."""

from torch import nn

from ds_moe_mtl.models.families.family import Family
from ds_moe_mtl.models.families.rope import check_rope, keep_rope_exact


class Rotary(Family):
    """What ModernBERT's, EuroBERT's and NomicBERT's files have in common."""

    def pack(self, model: nn.Module) -> None:
        """Refuse positions that depend on a batch; transformers' interface does the rest."""
        check_rope(model.config)
        keep_rope_exact(model)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the encoder's layers."""
        return model.layers
