"""Encoders with rotary positions and a gated FFN of three maps, as a Llama's, that see both ways.

What EuroBERT's and NomicBERT's files have in common; no family by itself.
"""

from abc import abstractmethod

from torch import nn

from ds_moe_mtl.models.families.ffn import FFN, checked
from ds_moe_mtl.models.families.rotary import Rotary


class GateUpDown(Rotary):
    """Its layers hold `self_attn` and `mlp` with gate_proj, up_proj and down_proj."""

    norm: str
    """What tells its layers from others of this shape: the name of a norm."""

    @abstractmethod
    def has_table(self, model: nn.Module) -> bool:
        """Return whether the model has this family's table of tokens."""

    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model has the family's embeddings and bidirectional layers alone."""
        layers = getattr(model, "layers", None)
        return (
            self.has_table(model)
            and hasattr(model, "rotary_emb")
            and isinstance(layers, nn.ModuleList)
            and all(self.ffn_layers(layer) for layer in layers)
        )

    def has_ffn(self, module: nn.Module) -> bool:
        """Return whether a module has an `mlp`, a bidirectional `self_attn` and the norm."""
        attention = getattr(module, "self_attn", None)
        sees_both_ways = getattr(attention, "is_causal", True) is False
        return hasattr(module, "mlp") and hasattr(module, self.norm) and sees_both_ways

    def ffn(self, layer: nn.Module, config) -> FFN:
        """Return a layer's gated FFN. Raises ValueError where it holds anything else."""
        mlp, names = layer.mlp, ("gate_proj", "up_proj", "down_proj")
        if not all(hasattr(mlp, name) for name in names):
            raise ValueError(
                f"{type(layer).__name__} cannot be upcycled: its mlp is a {type(mlp).__name__}; "
                f"allowed: one of {', '.join(names)}"
            )
        found = FFN((mlp.gate_proj, mlp.up_proj), mlp.down_proj, config.hidden_act, gated=True)
        return checked(found, [f"mlp.{name}" for name in names], mlp, layer)

    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the ends of attention and of the FFN."""
        return [(layer.self_attn, "o_proj"), (layer.mlp, "down_proj")]
