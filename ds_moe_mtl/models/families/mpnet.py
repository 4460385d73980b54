"""MPNet: BERT whose scores have a learned term for the distance of two tokens, one for all layers.

Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", 2004.09297.
T tokens, H heads, L tokens of a group's padded sequences.
"""

import torch
from torch import nn

from ds_moe_mtl.models.attention.own import PackedMask, attend, by_distance, distances, heads_of
from ds_moe_mtl.models.families.own_attention import OwnAttention, through


class MPNet(OwnAttention):
    """Its encoder holds `relative_attention_bias`, its layers `attention.attn`."""

    name = "MPNet"
    relative = True

    def marks(self, encoder: nn.Module) -> bool:
        """Return whether the encoder has a table of buckets of distances."""
        return isinstance(getattr(encoder, "relative_attention_bias", None), nn.Embedding)

    def attends(self, module: nn.Module) -> bool:
        """Return whether a module holds `q`, `k`, `v` and `o`."""
        return all(isinstance(getattr(module, name, None), nn.Module) for name in "qkvo")

    def run_layers(
        self, model: nn.Module, x: torch.Tensor, mask: PackedMask, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states [1, T, D]; each layer computes the term anew.

        The term of each distance is computed once, [H, 2 L - 1] of the longest group.
        """
        encoder = model.encoder
        longest = max((group.length for group in mask.packing), default=1)
        # transformers' function takes how far the key stands after the query.
        apart = -distances(longest, x.device)
        buckets = encoder.relative_position_bucket(apart)
        terms_HR = encoder.relative_attention_bias(buckets).t()
        return through(encoder.layer, x, mask, terms_HR)

    def attend(
        self, module: nn.Module, x: torch.Tensor, mask: PackedMask, position_bias, **others
    ) -> tuple[torch.Tensor]:
        """Return attention's output [1, T, D]; position_bias: terms by distance [H, 2 L - 1]."""
        longest = (position_bias.shape[1] + 1) // 2

        def terms(query, key, scaling):
            cut = longest - query.shape[2]
            return by_distance(position_bias[:, cut : position_bias.shape[1] - cut])[None]

        size = module.attention_head_size
        heads = [heads_of(each(x), size) for each in (module.q, module.k, module.v)]
        return (module.o(attend(module, heads, mask, size**-0.5, terms)),)

    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the ends of attention and of the FFN."""
        return [(layer.attention.attn, "o"), (layer.output, "dense")]
