"""The plain MoE layer: what a model folder holds; needs neither DeepSpeed nor a process group."""

import copy
from typing import NamedTuple

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.models.token_level.context import LayerRoute, keep_route
from ds_moe_mtl.models.token_level.experts import ffn_weights, run_experts
from ds_moe_mtl.models.token_level.gating import (
    RoutingOptions,
    gate_matrix,
    new_gates,
    route_tokens,
)


class Gate(nn.Module):
    """All gates of a layer as one matrix `wg.weight` [num_gates * num_experts, hidden]."""

    def __init__(self, hidden_size: int, options: RoutingOptions) -> None:
        super().__init__()
        self.wg = new_gates(hidden_size, options)


class MoELayer(nn.Module):
    """Sends each token to one copy of `expert`, chosen by the gate of the token's task."""

    def __init__(self, hidden_size: int, expert: nn.Module, options: RoutingOptions) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.options = options
        self.gate = Gate(hidden_size, options)
        self.experts = nn.ModuleList([copy.deepcopy(expert) for _ in range(options.num_experts)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        used_token: torch.Tensor | None = None,
        *,
        gate_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (output [batch, seq, hidden], auxiliary loss, tokens an expert [E]).

        gate_ids [batch] or [batch, seq], optional for one gate. used_token [batch, seq], 1 = real;
        other tokens are not routed and get 0.
        """
        result = run_layer(
            hidden_states,
            gate_matrix(self.gate.wg),
            list(self.experts),
            gate_ids,
            used_token,
            self.options,
            self.training,
        )
        keep_route(result.route)
        return result.y, result.aux_loss, result.counts_E


class LayerResult(NamedTuple):
    """Output in the input's shape, auxiliary loss (scalar), tokens an expert [E], the routes."""

    y: torch.Tensor
    aux_loss: torch.Tensor
    counts_E: torch.Tensor
    route: LayerRoute


def run_layer(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    experts: list[nn.Module],
    gate_ids: torch.Tensor | None,
    used_token: torch.Tensor | None,
    options: RoutingOptions,
    training: bool,
) -> LayerResult:
    """Return what the layer gives when all its experts are on this rank; both forms call it."""
    weights = ffn_weights(experts)
    if weights is not None and options.is_plain:
        w1, b1, w2, b2, activation = weights
        y, expert_T, prob_T, counts_E = moe_kernels.top1_moe_ffn(
            hidden_states,
            gate_weight,
            gate_ids,
            w1,
            b1,
            w2,
            b2,
            mask_T=used_token,
            gate_scale=options.gate_scale,
            activation=activation,
            impl=options.impl,
        )
        aux_loss = torch.zeros((), dtype=torch.float32, device=y.device)
        return LayerResult(y, aux_loss, counts_E, LayerRoute(expert_T, prob_T.detach()))
    routing, aux_loss = route_tokens(
        hidden_states, gate_weight, gate_ids, used_token, options, training
    )
    y_TD = run_experts(
        hidden_states.reshape(-1, hidden_states.shape[-1]),
        routing.counts_E,
        routing.order_R,
        experts,
        options.impl,
        moe_kernels.gate_scale_of(routing.prob_T, options.gate_scale),
    )
    route = LayerRoute(routing.expert_T, routing.prob_T.detach())
    return LayerResult(y_TD.reshape(hidden_states.shape), aux_loss, routing.counts_E, route)
