"""NomicBERT: rotary positions, token types, SwiGLU without biases, norms after the residuals.

Nussbaum et al., "Nomic Embed", 2402.01613.
"""

from torch import nn

from ds_moe_mtl.models.families.gate_up_down import GateUpDown


class NomicBert(GateUpDown):
    """BERT's order of norms around a gated FFN."""

    name = "NomicBERT"
    norm = "post_mlp_layernorm"

    def has_table(self, model: nn.Module) -> bool:
        """Return whether the model has `embeddings.word_embeddings`."""
        table = getattr(getattr(model, "embeddings", None), "word_embeddings", None)
        return isinstance(table, nn.Embedding)
