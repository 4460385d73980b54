"""DeepSpeed's own MoE layer in the place of ours, for comparisons of speed: one gate, no tasks."""

import torch
from deepspeed.moe.layer import MoE
from torch import nn

from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.moe.convert import moe_layers


class StockMoE(MoE):
    """deepspeed.moe.layer.MoE as it is, called as a RoutedFFN calls its layer."""

    load_balance_loss = 0.0
    """What DeepSpeed's auxiliary loss is multiplied by, which is for its user to do."""

    def forward(
        self, hidden_states: torch.Tensor, used_token=None, *, gate_ids=None, cu_seqlens=None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return DeepSpeed's (output, auxiliary loss, counts); gate ids do not reach its gate."""
        tokens = None if used_token is None else used_token.reshape(-1)
        y, aux_loss, counts = super().forward(hidden_states, tokens)
        weight = self.load_balance_loss
        return y, aux_loss * weight if weight else torch.zeros_like(aux_loss), counts


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
        stock.load_balance_loss = layer.options.load_balance_loss
        setattr(holder, name, stock.to(layer.gate.wg.weight))
    return model


def join_groups(model: nn.Module) -> nn.Module:
    """Give stock layers their process group, which an engine's set-up would; for a bare model."""
    for _, _, layer in moe_layers(model, StockMoE):
        layer.set_deepspeed_parallelism()
    return model
