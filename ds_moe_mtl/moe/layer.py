"""TaskMoE: DeepSpeed's MoE layer with task-conditioned, dropless top-1 dispatch.

The attribute names (deepspeed_moe, gate, experts.deepspeed_experts, l_aux, exp_counts) are
DeepSpeed's: it finds expert parameters and writes expert checkpoints by them.
"""

import torch
from deepspeed.moe.experts import Experts
from deepspeed.moe.layer import MoE
from deepspeed.moe.sharded_moe import MOELayer
from torch import nn

from ds_moe_mtl.models.token_level.context import LayerRoute, keep_route
from ds_moe_mtl.models.token_level.gating import RoutingOptions, gate_matrix
from ds_moe_mtl.models.token_level.moe_layer import LayerResult, parts_of, run_layer
from ds_moe_mtl.models.token_level.shared_slice import add_shared
from ds_moe_mtl.moe.arguments import StockArguments
from ds_moe_mtl.moe.dispatch import remote_experts
from ds_moe_mtl.moe.gate import TaskGate
from ds_moe_mtl.moe.hosts import HostGroups
from ds_moe_mtl.moe.version import check_deepspeed_version


class TaskMoE(MoE):
    """A DeepSpeed MoE layer whose gate is chosen by the task of each example or token.

    It stands wherever a MoE does: the arguments up to top2_2nd_expert_sampling are MoE's, in its
    order. Unlike it, it drops nothing unless drop_tokens=True or dispatch="capacity" says so, and
    then what does not fit is dropped in token order; its auxiliary loss is 0 unless asked for.

    expert: the module to copy num_experts times. ep_size: ranks that share one set of experts.
    num_gates: one a task; 1 is MT-Switch. Further keywords are RoutingOptions' fields (gate_scale,
    dispatch, load_balance_loss, router_z_loss, jitter, impl, gate_embedding). Raises ValueError for
    options outside what is allowed and for those of MoE that this layer does not have (k = 2,
    Tutel, tensor-parallel experts, RSample noise, another capacity in evaluation).
    """

    def __init__(
        self,
        hidden_size: int,
        expert: nn.Module,
        num_experts: int = RoutingOptions.num_experts,
        ep_size: int = 1,
        k: int = 1,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        min_capacity: int | None = None,
        use_residual: bool = False,
        noisy_gate_policy: str | None = None,
        drop_tokens: bool | None = None,
        use_rts: bool | None = None,
        use_tutel: bool = False,
        enable_expert_tensor_parallelism: bool = False,
        top2_2nd_expert_sampling: bool = True,
        *,
        num_gates: int = 8,
        **options,
    ) -> None:
        check_deepspeed_version()
        stock = StockArguments(
            k,
            capacity_factor,
            eval_capacity_factor,
            min_capacity,
            noisy_gate_policy,
            drop_tokens,
            use_rts,
            use_tutel,
            enable_expert_tensor_parallelism,
        )
        routing = RoutingOptions(
            num_experts=num_experts, num_gates=num_gates, **stock.routing(options)
        )
        _check_ep_size(ep_size, routing)
        nn.Module.__init__(self)
        self.shared, copied = parts_of(expert, routing)
        self.hidden_size = hidden_size
        self.options = routing
        self.use_residual = use_residual
        self.enable_expert_tensor_parallelism = False
        self.ep_size = ep_size
        self.expert_group_name = f"ep_size_{ep_size}"
        self.num_experts = num_experts
        self.num_local_experts = num_experts // ep_size
        self.deepspeed_moe = TaskMOELayer(
            TaskGate(hidden_size, routing),
            Experts(copied, self.num_local_experts, self.expert_group_name),
            self.expert_group_name,
            ep_size,
            self.num_local_experts,
        )
        if use_residual:
            self.mlp = expert
            self.coefficient = nn.Linear(hidden_size, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        used_token: torch.Tensor | None = None,
        *,
        gate_ids: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (output [batch, seq, hidden], auxiliary loss, this rank's tokens an expert [E]).

        gate_ids [batch] or [batch, seq], optional for one gate. used_token [batch, seq], or flat
        as stock MoE's, 1 = real; other tokens are neither routed nor counted and get 0.
        cu_seqlens: as in MoELayer.forward.
        """
        tokens = hidden_states.shape[:-1]
        if used_token is not None and used_token.dim() == 1 and len(used_token) == tokens.numel():
            used_token = used_token.view(tokens)
        result = self.deepspeed_moe(hidden_states, used_token, gate_ids, cu_seqlens)
        y = add_shared(result.y, self.shared, hidden_states, used_token)
        y = self._beside_mlp(hidden_states, y) if self.use_residual else y
        return y, result.aux_loss, result.counts_E

    @property
    def tied(self) -> bool:
        """Whether in training the copies are one FFN; with ep_size 1 alone."""
        return self.deepspeed_moe.tied

    @tied.setter
    def tied(self, tied: bool) -> None:
        if tied and self.ep_size > 1:
            raise ValueError(f"tied experts with ep_size = {self.ep_size}; allowed: ep_size=1")
        self.deepspeed_moe.tied = tied

    def _beside_mlp(self, hidden_states: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the experts' output and a dense one's, weighted by a learned share of each token.

        Source: DeepSpeed-MoE (arXiv 2201.05596), sec. 4.1.2; deepspeed.moe.layer.MoE.
        """
        dense = self.mlp(hidden_states)
        dense = dense[0] if isinstance(dense, tuple) else dense
        share = torch.softmax(self.coefficient(hidden_states), dim=-1)
        return y * share[..., 0:1] + dense * share[..., 1:]


def _check_ep_size(ep_size: int, options: RoutingOptions) -> None:
    """Raise ValueError where a layer cannot be shared out over so many ranks."""
    if ep_size < 1 or options.num_experts % ep_size:
        raise ValueError(f"ep_size must divide num_experts = {options.num_experts}, got {ep_size}")
    if ep_size > 1 and options.combine == "merged":
        raise ValueError(
            f"ep_size = {ep_size} with combine = merged: every rank needs all experts' weights; "
            f"allowed: ep_size=1"
        )


class TaskMOELayer(MOELayer):
    """MOELayer whose dispatch drops nothing, pads nothing and routes no pads.

    l_aux and exp_counts are what the last call in any thread left, for DeepSpeed's readers of them.
    """

    tied = False
    hosts: HostGroups | None = None
    """Where rows are gathered within hosts first (to_deepspeed sets it)."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        used_token: torch.Tensor | None,
        gate_ids: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> LayerResult:
        result = self._run(hidden_states, used_token, gate_ids, cu_seqlens)
        self.l_aux, self.exp_counts = result.aux_loss, result.counts_E
        keep_route(result.route)
        return result

    def _run(self, hidden_states, used_token, gate_ids, cu_seqlens) -> LayerResult:
        experts, options = list(self.experts.deepspeed_experts), self.gate.options
        if self.ep_size == 1:
            return run_layer(
                hidden_states,
                gate_matrix(self.gate.wg),
                experts,
                gate_ids,
                used_token,
                options,
                self.training,
                self.tied,
                cu_seqlens,
            )
        if self.ep_group is None:
            raise RuntimeError(
                f"ep_size is {self.ep_size} but no process group is set: initialise DeepSpeed's "
                f"engine with this model, or call set_deepspeed_parallelism()"
            )
        routing, aux_loss = self.gate.route(hidden_states, gate_ids, used_token, cu_seqlens)
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        y_TD = remote_experts(x_TD, routing, experts, options, self.ep_group, self.hosts)
        route = LayerRoute(routing.expert_T, routing.prob_T.detach())
        return LayerResult(y_TD.reshape(hidden_states.shape), aux_loss, routing.counts_E, route)
