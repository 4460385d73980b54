"""TaskMoE: DeepSpeed's MoE layer with task-conditioned, dropless top-1 dispatch.

The attribute names (deepspeed_moe, gate, experts.deepspeed_experts, l_aux, exp_counts) are
DeepSpeed's: it finds expert parameters and writes expert checkpoints by them.
"""

import torch
from deepspeed.moe.experts import Experts
from deepspeed.moe.layer import MoE
from deepspeed.moe.sharded_moe import MOELayer
from torch import nn

from ds_moe_mtl.models.token_level.context import LayerRoute
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.moe_layer import parts_of, routed, run_layer
from ds_moe_mtl.models.token_level.shared_slice import add_shared
from ds_moe_mtl.moe.dispatch import remote_experts
from ds_moe_mtl.moe.gate import TaskGate
from ds_moe_mtl.moe.version import check_deepspeed_version


class TaskMoE(MoE):
    """A DeepSpeed MoE layer whose gate is chosen by the task of each example or token.

    expert: the module to copy num_experts times. num_gates: one a task; 1 is MT-Switch.
    ep_size: ranks that share one set of experts. Further keywords are RoutingOptions' fields
    (gate_scale, dispatch, capacity_factor, load_balance_loss, router_z_loss, jitter, impl).
    Raises ValueError for options outside what is allowed.
    """

    def __init__(
        self,
        hidden_size: int,
        expert: nn.Module,
        num_experts: int = 4,
        num_gates: int = 8,
        ep_size: int = 1,
        **options,
    ) -> None:
        check_deepspeed_version()
        routing = RoutingOptions(num_experts=num_experts, num_gates=num_gates, **options)
        if ep_size < 1 or num_experts % ep_size:
            raise ValueError(f"ep_size must divide num_experts = {num_experts}, got {ep_size}")
        if ep_size > 1 and routing.combine == "merged":
            raise ValueError(
                f"ep_size = {ep_size} with combine = merged: every rank needs all experts' "
                "weights; allowed: ep_size=1"
            )
        nn.Module.__init__(self)
        self.shared, expert = parts_of(expert, routing)
        self.hidden_size = hidden_size
        self.options = routing
        self.use_residual = False
        self.enable_expert_tensor_parallelism = False
        self.ep_size = ep_size
        self.expert_group_name = f"ep_size_{ep_size}"
        self.num_experts = num_experts
        self.num_local_experts = num_experts // ep_size
        self.deepspeed_moe = TaskMOELayer(
            TaskGate(hidden_size, routing),
            Experts(expert, self.num_local_experts, self.expert_group_name),
            self.expert_group_name,
            ep_size,
            self.num_local_experts,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        gate_ids: torch.Tensor | None = None,
        used_token: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (output [batch, seq, hidden], auxiliary loss, this rank's tokens an expert [E]).

        gate_ids [batch] or [batch, seq], optional for one gate. used_token [batch, seq], 1 = real;
        other tokens are neither routed nor counted and get 0. cu_seqlens: as in MoELayer.forward.
        """
        y = self.deepspeed_moe(hidden_states, gate_ids, used_token, cu_seqlens=cu_seqlens)
        y = add_shared(y, self.shared, hidden_states, used_token)
        return y, self.deepspeed_moe.l_aux, self.deepspeed_moe.exp_counts

    @property
    def tied(self) -> bool:
        """Whether in training the copies are one FFN; with ep_size 1 alone."""
        return self.deepspeed_moe.tied

    @tied.setter
    def tied(self, tied: bool) -> None:
        if tied and self.ep_size > 1:
            raise ValueError(f"tied experts with ep_size = {self.ep_size}; allowed: ep_size=1")
        self.deepspeed_moe.tied = tied

    def last_route(self) -> LayerRoute:
        """Return where the last call's tokens went. Raises ValueError where none is routed."""
        return routed(self.deepspeed_moe.last_route, self.options)


class TaskMOELayer(MOELayer):
    """MOELayer whose dispatch drops nothing, pads nothing and routes no pads."""

    tied = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        gate_ids: torch.Tensor | None,
        used_token: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        experts, options = list(self.experts.deepspeed_experts), self.gate.options
        if self.ep_size == 1:
            result = run_layer(
                hidden_states,
                self.gate.wg.weight,
                experts,
                gate_ids,
                used_token,
                options,
                self.training,
                self.tied,
                cu_seqlens,
            )
            self.l_aux, self.exp_counts, self.last_route = result[1:]
            return result.y
        if self.ep_group is None:
            raise RuntimeError(
                f"ep_size is {self.ep_size} but no process group is set: initialise DeepSpeed's "
                f"engine with this model, or call set_deepspeed_parallelism()"
            )
        routing, self.l_aux = self.gate.route(hidden_states, gate_ids, used_token, cu_seqlens)
        self.exp_counts = routing.counts_E
        self.last_route = LayerRoute(routing.expert_T, routing.prob_T.detach())
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        y_TD = remote_experts(x_TD, routing, experts, options, self.ep_group)
        return y_TD.reshape(hidden_states.shape)
