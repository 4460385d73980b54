"""ModernBERT and mmBERT: rotary positions, local layers between global ones, GeGLU, norms first.

Warner et al., "Smarter, Better, Faster, Longer", 2412.13663. The dropout inside its FFN (0 in all
that is published) stays off: it would stand between an expert's two maps.
"""

from torch import nn

from ds_moe_mtl.models.families.ffn import FFN, checked
from ds_moe_mtl.models.families.rotary import Rotary


class ModernBert(Rotary):
    """Its layers hold `attn.Wqkv` and `mlp.Wi`, whose first half is the activated one."""

    name = "ModernBERT"
    dropouts = ("embedding_dropout", "attention_dropout")
    undropped = ("mlp_dropout",)
    no_dropout = ("mlp.drop",)

    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model has ModernBERT's embeddings and its layers."""
        table = getattr(getattr(model, "embeddings", None), "tok_embeddings", None)
        layers = getattr(model, "layers", None)
        return (
            isinstance(table, nn.Embedding)
            and isinstance(layers, nn.ModuleList)
            and hasattr(model, "rotary_emb")
        )

    def has_ffn(self, module: nn.Module) -> bool:
        """Return whether a module has an `mlp` and a bidirectional `attn` of ModernBERT's."""
        attention = getattr(module, "attn", None)
        return hasattr(module, "mlp") and hasattr(attention, "Wqkv") and not attention.is_causal

    def ffn(self, layer: nn.Module, config) -> FFN:
        """Return a layer's GeGLU. Raises ValueError where the FFN holds anything else."""
        mlp = layer.mlp
        if mlp.drop.p:
            raise ValueError(
                f"{type(layer).__name__} cannot be upcycled: mlp_dropout = {mlp.drop.p:g}, which "
                f"experts have not; allowed: 0"
            )
        found = FFN((mlp.Wi,), mlp.Wo, config.hidden_activation, gated=True)
        return checked(found, ("mlp.Wi", "mlp.Wo"), mlp, layer)

    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the ends of attention and of the FFN."""
        return [(layer.attn, "Wo"), (layer.mlp, "Wo")]

    def word_embeddings(self, model: nn.Module) -> nn.Embedding:
        """Return the table of the tokens."""
        return model.embeddings.tok_embeddings

    def window(self, model: nn.Module) -> int:
        """Return half of local_attention; 0 where no layer is local."""
        local = "sliding_attention" in model.config.layer_types
        return model.config.sliding_window if local else 0
