"""The plain MoE layer: what a model folder holds; needs neither DeepSpeed nor a process group."""

import copy
from typing import NamedTuple

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.models.token_level.context import LayerRoute, keep_route
from ds_moe_mtl.models.token_level.experts import FeedForward, ffn_weights, run_experts
from ds_moe_mtl.models.token_level.gating import (
    RoutingOptions,
    gate_matrix,
    new_gates,
    route_tokens,
)
from ds_moe_mtl.models.token_level.merged import merged_ffn
from ds_moe_mtl.models.token_level.shared_slice import add_shared, join_ffn, split_ffn
from ds_moe_mtl.models.token_level.tied import tied_ffn


class Gate(nn.Module):
    """All gates of a layer as one matrix `wg.weight` [num_gates * num_experts, hidden].

    Of merged experts: one table of mixtures, [num_gates, num_experts].
    """

    def __init__(self, hidden_size: int, options: RoutingOptions) -> None:
        super().__init__()
        self.wg = new_gates(hidden_size, options)


class MoELayer(nn.Module):
    """Sends each token to one copy of `expert`, chosen by the gate of the token's task.

    tied: in training the copies are one FFN (models.token_level.tied). Raises ValueError for an
    expert that the options cannot take.
    """

    tied = False

    def __init__(self, hidden_size: int, expert: nn.Module, options: RoutingOptions) -> None:
        super().__init__()
        self.shared, expert = parts_of(expert, options)
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
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (output [batch, seq, hidden], auxiliary loss, tokens an expert [E]).

        gate_ids [batch] or [batch, seq], optional for one gate. used_token [batch, seq], 1 = real;
        other tokens are not routed and get 0. cu_seqlens [S + 1]: where sequences start, for
        route_by "sequence"; None: each row is one.
        """
        result = run_layer(
            hidden_states,
            gate_matrix(self.gate.wg),
            list(self.experts),
            gate_ids,
            used_token,
            self.options,
            self.training,
            self.tied,
            cu_seqlens,
        )
        keep_route(result.route)
        y = add_shared(result.y, self.shared, hidden_states, used_token)
        return y, result.aux_loss, result.counts_E

    def dense_expert(self) -> nn.Module:
        """Return the first expert as the whole FFN that it stands for, its shared part included."""
        first = self.experts[0]
        return first if self.shared is None else join_ffn(self.shared, first)


class LayerResult(NamedTuple):
    """Output in the input's shape, auxiliary loss (scalar), tokens an expert [E], the routes.

    Of merged experts: counts_E sums the tokens' shares of each expert, and there is no route.
    """

    y: torch.Tensor
    aux_loss: torch.Tensor
    counts_E: torch.Tensor
    route: LayerRoute | None


def parts_of(expert: nn.Module, options: RoutingOptions) -> tuple[FeedForward | None, nn.Module]:
    """Return (the part of an FFN that sees every token or None, the expert to copy).

    Raises ValueError for an expert that a layer with these options cannot have.
    """
    if options.shared_share:
        if not isinstance(expert, FeedForward):
            raise ValueError(
                f"shared_share = {options.shared_share} with an expert that is "
                f"{type(expert).__name__}; allowed: FeedForward"
            )
        return split_ffn(expert, options.shared_share)
    if options.combine == "merged" and ffn_weights([expert]) is None:
        raise ValueError(
            f"combine = merged with an expert that is {type(expert).__name__}; allowed: "
            "FeedForward without dropout, or nn.Sequential(Linear, GELU, Linear)"
        )
    return None, expert


def run_layer(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    experts: list[nn.Module],
    gate_ids: torch.Tensor | None,
    used_token: torch.Tensor | None,
    options: RoutingOptions,
    training: bool,
    tied: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> LayerResult:
    """Return what the layer gives when all its experts are on this rank; both forms call it.

    tied: in training no token is routed (counts of 0): the experts are one FFN.
    """
    _check_gate_ids(gate_ids)
    if tied and training:
        y = tied_ffn(hidden_states, experts, gate_weight, used_token)
        none_E = torch.zeros(len(experts), dtype=torch.int32, device=y.device)
        return LayerResult(y, _no_loss(y), none_E, None)
    weights = ffn_weights(experts)
    if options.combine == "merged":
        if weights is None:
            raise ValueError(
                "combine = merged with experts that are no plain pair of nn.Linear any more; "
                "allowed: experts without adapters, hooks and quantisation"
            )
        y, load_E = merged_ffn(
            hidden_states, gate_weight, weights, gate_ids, used_token, options.impl
        )
        return LayerResult(y, _no_loss(y), load_E, None)
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
        return LayerResult(y, _no_loss(y), counts_E, LayerRoute(expert_T, prob_T.detach()))
    routing, aux_loss = route_tokens(
        hidden_states, gate_weight, gate_ids, used_token, options, training, cu_seqlens
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


def _check_gate_ids(gate_ids: torch.Tensor | None) -> None:
    """Raise ValueError for gate ids that are no tensor of whole numbers."""
    if gate_ids is not None and (
        not isinstance(gate_ids, torch.Tensor)
        or gate_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8)
    ):
        raise ValueError("gate_ids is a tensor of whole numbers, [batch] or [batch, seq]")


def _no_loss(y: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float32, device=y.device)
