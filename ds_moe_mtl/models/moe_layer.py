"""The plain MoE layer: what a model folder holds; needs neither DeepSpeed nor a process group."""

import copy

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.models.context import LayerRoute
from ds_moe_mtl.models.experts import run_experts
from ds_moe_mtl.models.gating import (
    GATE_INIT_STD,
    RoutingOptions,
    route_tokens,
)


class Gate(nn.Module):
    """All gates of a layer as one matrix `wg.weight` [num_gates * num_experts, hidden]."""

    def __init__(self, hidden_size: int, options: RoutingOptions) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden_size, options.num_gates * options.num_experts, bias=False)
        nn.init.normal_(self.wg.weight, std=GATE_INIT_STD)


class MoELayer(nn.Module):
    """Sends each token to one copy of `expert`, chosen by the gate of the token's task."""

    def __init__(self, hidden_size: int, expert: nn.Module, options: RoutingOptions) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.options = options
        self.gate = Gate(hidden_size, options)
        self.experts = nn.ModuleList([copy.deepcopy(expert) for _ in range(options.num_experts)])
        self._route: LayerRoute | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        gate_ids: torch.Tensor | None = None,
        used_token: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (output [batch, seq, hidden], auxiliary loss, tokens an expert [E]).

        gate_ids [batch] or [batch, seq], optional for one gate. used_token [batch, seq], 1 = real;
        other tokens are not routed and get 0.
        """
        shape = hidden_states.shape
        routing, aux_loss = route_tokens(
            hidden_states, self.gate.wg.weight, gate_ids, used_token, self.options, self.training
        )
        self._route = LayerRoute(routing.expert_T, routing.prob_T.detach())
        x_TD = hidden_states.reshape(-1, shape[-1])
        y_TD = local_experts(x_TD, routing, list(self.experts), self.options)
        return y_TD.reshape(shape), aux_loss, routing.counts_E

    def last_route(self) -> LayerRoute:
        """Return where the last call's tokens went."""
        assert self._route is not None, "the layer has not run yet"
        return self._route


def local_experts(
    x_TD: torch.Tensor,
    routing: moe_kernels.Routing,
    experts: list[nn.Module],
    options: RoutingOptions,
) -> torch.Tensor:
    """Return the scaled expert outputs in token order [T, D], all experts being on this rank."""
    scale_T = moe_kernels.gate_scale_of(routing.prob_T, options.gate_scale)
    x_RD = moe_kernels.permute(x_TD, routing, impl=options.impl)
    y_RD = run_experts(x_RD, routing.counts_E, experts, options.impl)
    return moe_kernels.unpermute(y_RD, routing, scale_T, impl=options.impl)
