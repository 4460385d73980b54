"""MPNet: BERT whose scores have a learned term for the distance of two tokens, one for all layers.

Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", 2004.09297.
T tokens, H heads, L tokens of a group's padded sequences.
"""

from functools import lru_cache

import torch
from torch import nn

from ds_moe_mtl.models.attention.own import (
    PackedMask,
    attend,
    by_distance,
    distances,
    heads_of,
    longest_of,
    nearest,
)
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

    def pack(self, model: nn.Module) -> None:
        """Give the encoder a forward that takes a plan.

        Raises ValueError where transformers would give real tokens the position of pads: it takes
        id 1 for a pad's, whatever the configuration says.
        """
        own, told = model.embeddings.padding_idx, model.config.pad_token_id
        if own != told:
            raise ValueError(f"its pad_token_id is {told}; allowed: {own}, as in MPNet's code")
        super().pack(model)

    def run_layers(
        self, model: nn.Module, x: torch.Tensor, mask: PackedMask, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states [1, T, D]; each layer looks the distances' terms up."""
        encoder = model.encoder
        return through(encoder.layer, x, mask, encoder.relative_attention_bias.weight)

    def attend(
        self, module: nn.Module, x: torch.Tensor, mask: PackedMask, position_bias, **others
    ) -> tuple[torch.Tensor]:
        """Return attention's output [1, T, D]; position_bias: the table of buckets [., H]."""
        longest = longest_of(mask.packing)
        terms_HR = nn.functional.embedding(_buckets(longest, x.device), position_bias).t()

        def terms(query, key, scaling):
            return by_distance(nearest(terms_HR, query.shape[2]))[None]

        size = module.attention_head_size
        heads = [heads_of(each(x), size) for each in (module.q, module.k, module.v)]
        return (module.o(attend(module, heads, mask, size**-0.5, terms)),)

    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the ends of attention and of the FFN."""
        return [(layer.attention.attn, "o"), (layer.output, "dense")]


@lru_cache(maxsize=1024)
def _buckets(longest: int, device: torch.device) -> torch.Tensor:
    """Return each distance's bucket [2 L - 1], in `distances`' order, as transformers has them.

    On a CPU first, where no rounding of a logarithm differs from device to device.
    """
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    with torch.inference_mode(False):  # kept for later calls, that may have a backward pass
        key_after_query = -distances(longest, torch.device("cpu"))
        return MPNetEncoder.relative_position_bucket(key_after_query).to(device)
