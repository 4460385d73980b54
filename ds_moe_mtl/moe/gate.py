"""DeepSpeed's TopKGate, conditioned on the task.

S tokens, D hidden size, G gates, E experts.
"""

import torch
from deepspeed.moe.sharded_moe import TopKGate
from torch import distributed as dist

from ds_moe_mtl.models.token_level.gating import (
    RoutingOptions,
    gate_matrix,
    new_gates,
    route_tokens,
)
from moe_kernels import Routing, gate_scale_of


class TaskGate(TopKGate):
    """All gates of a layer in one matrix `wg.weight` [G * E, D]; a token uses its task's gate.

    The layer calls `route`. `forward` answers in DeepSpeed's own contract, so that a stock
    MOELayer can drive this gate too.
    """

    def __init__(self, hidden_size: int, options: RoutingOptions) -> None:
        super().__init__(
            hidden_size,
            options.num_experts,
            k=1,
            capacity_factor=options.capacity_factor,
            eval_capacity_factor=options.capacity_factor,
            min_capacity=0,
            drop_tokens=options.dispatch == "capacity",
            use_rts=False,
        )
        self.options = options
        self.wg = new_gates(hidden_size, options)

    def route(
        self,
        hidden_states: torch.Tensor,
        gate_ids: torch.Tensor | None,
        used_token: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[Routing, torch.Tensor]:
        """Return the routing of hidden_states [batch, seq, D] and the auxiliary loss."""
        return route_tokens(
            hidden_states,
            gate_matrix(self.wg),
            gate_ids,
            used_token,
            self.options,
            self.training,
            cu_seqlens,
        )

    def forward(
        self,
        input: torch.Tensor,
        used_token: torch.Tensor | None = None,
        sparse_routes: bool = True,
        use_tutel: bool = False,
        gate_ids: torch.Tensor | None = None,
    ) -> tuple:
        """Return DeepSpeed's (l_aux, capacity, E, indices, locations, gates, exp_counts).

        input [S, D]; indices and locations int32 [1, S] (index -1: not routed); gates float32
        [1, S]. Contract: deepspeed 0.19.4 to 0.19.x, MOELayer.forward.
        """
        if self.options.combine == "merged" or self.options.route_by == "sequence":
            raise ValueError(
                "a stock layer's gate sees single tokens; allowed with combine = merged or "
                "route_by = sequence: TaskMoE itself"
            )
        if not sparse_routes or use_tutel:
            raise ValueError("TaskGate answers in sparse routes only, without Tutel")
        mask = None if used_token is None else used_token.reshape(1, -1)
        ids = None if gate_ids is None else gate_ids.reshape(1, -1)
        routing, aux_loss = self.route(input[None], ids, mask)
        capacity = routing.counts_E.max()
        if self.ep_group is not None and dist.get_world_size(self.ep_group) > 1:
            dist.all_reduce(capacity, op=dist.ReduceOp.MAX, group=self.ep_group)
        scale_S = gate_scale_of(routing.prob_T, self.options.gate_scale)
        return (
            aux_loss,
            capacity,
            self.options.num_experts,
            routing.expert_T[None],
            _place_in_expert(routing)[None],
            scale_S[None],
            routing.counts_E,
        )


def _place_in_expert(routing: Routing) -> torch.Tensor:
    """Return each token's row within its expert's block, int32 [S]; 0 where not routed."""
    start_E = torch.cumsum(routing.counts_E, 0) - routing.counts_E
    order_R = routing.order_R.long()
    expert_R = routing.expert_T[order_R]
    rows = torch.arange(len(expert_R), device=expert_R.device)
    place_S = torch.zeros_like(routing.expert_T)
    place_R = torch.where(expert_R < 0, 0, rows - start_E[expert_R.clamp(min=0)])
    place_S[order_R] = place_R.to(place_S.dtype)
    return place_S
