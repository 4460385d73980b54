"""DeepSpeed's own MoE layer in the place of ours, for comparisons of speed: one gate, no tasks."""

import torch
from deepspeed.moe.layer import MoE
from torch import nn

from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.moe.convert import moe_layers


class StockMoE(MoE):
    """deepspeed.moe.layer.MoE as it is, called as a RoutedFFN calls its layer."""

    def forward(
        self, hidden_states: torch.Tensor, gate_ids=None, used_token=None, cu_seqlens=None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return DeepSpeed's (output, auxiliary loss, counts); gate ids do not reach its gate."""
        tokens = None if used_token is None else used_token.reshape(-1)
        return super().forward(hidden_states, tokens)


def to_stock(model: nn.Module, drop_tokens: bool) -> nn.Module:
    """Return `model` with every MoELayer replaced by DeepSpeed's own top-1 layer, in place.

    drop_tokens True: capacity factor 1, what does not fit is dropped. False: every expert is
    padded to the fullest one. No random token selection.
    """
    for holder, name, layer in moe_layers(model, MoELayer):
        stock = StockMoE(
            layer.hidden_size,
            layer.dense_expert(),
            layer.options.num_experts,
            capacity_factor=1.0,
            min_capacity=0,
            drop_tokens=drop_tokens,
            use_rts=False,
        )
        setattr(holder, name, stock.to(layer.gate.wg.weight))
    return model


def join_groups(model: nn.Module) -> nn.Module:
    """Give stock layers their process group, which an engine's set-up would; for a bare model."""
    for _, _, layer in moe_layers(model, StockMoE):
        layer.set_deepspeed_parallelism()
    return model
