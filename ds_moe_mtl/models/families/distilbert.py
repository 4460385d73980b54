"""DistilBERT: BERT's layers by other names, without token types or a pooler.

Sanh et al., "DistilBERT, a distilled version of BERT", 1910.01108.
"""

import torch
from torch import nn

from ds_moe_mtl.models.families.family import Family
from ds_moe_mtl.models.families.ffn import FFN, checked


class DistilBert(Family):
    """Its layers hold `attention.out_lin` and `ffn` with lin1 and lin2."""

    name = "DistilBERT"
    dropouts = ("dropout", "attention_dropout")

    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model has BERT's embeddings and a `transformer` of layers."""
        embeddings = getattr(model, "embeddings", None)
        names = ("word_embeddings", "position_embeddings")
        layers = getattr(getattr(model, "transformer", None), "layer", None)
        return isinstance(layers, nn.ModuleList) and all(
            isinstance(getattr(embeddings, name, None), nn.Embedding) for name in names
        )

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the encoder's layers."""
        return model.transformer.layer

    def has_ffn(self, module: nn.Module) -> bool:
        """Return whether a module has `ffn` with lin1 and lin2, and `sa_layer_norm`."""
        ffn = getattr(module, "ffn", None)
        return hasattr(ffn, "lin1") and hasattr(ffn, "lin2") and hasattr(module, "sa_layer_norm")

    def ffn(self, layer: nn.Module, config) -> FFN:
        """Return a layer's FFN. Raises ValueError where it runs in pieces or holds more."""
        if layer.ffn.chunk_size_feed_forward:
            raise ValueError(
                f"{type(layer).__name__} cannot be upcycled: it has chunk_size_feed_forward = "
                f"{layer.ffn.chunk_size_feed_forward}; allowed: an FFN in one piece"
            )
        found = FFN((layer.ffn.lin1,), layer.ffn.lin2, config.activation)
        return checked(found, ("ffn.lin1", "ffn.lin2"), layer.ffn, layer)

    def run_ffn(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense layer's FFN makes of x [..., D], before dropout and residual."""
        ffn = layer.ffn
        return ffn.lin2(ffn.activation(ffn.lin1(x)))

    def put_ffn(self, layer: nn.Module, routed: nn.Module) -> None:
        """Put `routed` where the two maps stood; the dropout after them stays."""
        layer.ffn.lin1 = routed
        layer.ffn.activation, layer.ffn.lin2 = nn.Identity(), nn.Identity()

    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the ends of attention and of the FFN."""
        return [(layer.attention, "out_lin"), (layer.ffn, "lin2")]

    def max_length(self, model: nn.Module) -> int:
        """Return the tokens of the longest sequence that has positions."""
        return model.embeddings.position_embeddings.num_embeddings
