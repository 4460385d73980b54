"""EuroBERT: rotary positions, grouped keys and values, SwiGLU, RMSNorm first.

Boizard et al., "EuroBERT: Scaling Multilingual Encoders", 2503.05500. Its only dropout is that of
the attention's weights.
"""

from torch import nn

from ds_moe_mtl.models.families.gate_up_down import GateUpDown


class EuroBert(GateUpDown):
    """A Llama's layers that see both ways."""

    name = "EuroBERT"
    dropouts = ("attention_dropout",)
    norm = "input_layernorm"

    def has_table(self, model: nn.Module) -> bool:
        """Return whether the model has `embed_tokens`."""
        return isinstance(getattr(model, "embed_tokens", None), nn.Embedding)

    def word_embeddings(self, model: nn.Module) -> nn.Embedding:
        """Return the table of the tokens."""
        return model.embed_tokens

    def token_types(self, model: nn.Module) -> int:
        """Return 0: it takes no token types."""
        return 0
