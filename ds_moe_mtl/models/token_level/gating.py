"""Top-1 routing by the token's own gate, with the options that both layer forms share.

T tokens, D hidden size, G gates, E experts.
Source: "Sparsely Activated MoE are Robust Multi-Task Learners", eq. 3-6.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import moe_kernels
from ds_moe_mtl.config.levers import check_levers
from ds_moe_mtl.config.schema import MoeSection
from ds_moe_mtl.models.token_level.merged import Mixtures
from ds_moe_mtl.models.token_level.sequence_route import route_sequences

GATE_INIT_STD = 0.001
"""Standard deviation of new gates; same paper, sec. 4.4."""

SPREAD_NORM = 1.0
"""Norm of an expert's row in gates that start spread. Behind a layer norm an input has norm about
sqrt(D), so logits differ by about 1 (new small gates: by 0.001). Our choice."""

DISPATCHES = ("dropless", "capacity")
COMBINES = ("top1", "merged")
GATE_INITS = ("small", "spread")
ROUTED_BY = ("token", "sequence")


@dataclass(frozen=True)
class RoutingOptions:
    """How tokens are sent to experts.

    capacity_factor: with dispatch "capacity" an expert takes at most
    ceil(routed tokens / experts * capacity_factor) tokens of a call in training, in token order;
    others get 0. Out of training no token is dropped: an answer depends on no neighbour.
    load_balance_loss, router_z_loss: weights of the auxiliary losses (0: off).
    jitter: in training, gate inputs are multiplied by U(1 - jitter, 1 + jitter).
    gate_embedding: width of the task vectors that generate the gates (0: each gate by itself).
    combine: "top1", or "merged": no token is routed, a gate is a mixture of the experts' weights
    (models.token_level.merged).
    shared_share: that share of an FFN's neurons sees every token, the rest is experts
    (models.token_level.shared_slice).
    layers: of a model, which layers have experts (models.token_level.sparse_layers).
    gate_init: of new gates, "small": N(0, 0.001); "spread": each gate's rows orthogonal and of
    SPREAD_NORM, so that no expert is ahead by its norm and the choice is clear from the start.
    route_by: "token", or "sequence": one decision for all tokens of a sequence
    (models.token_level.sequence_route).
    """

    num_experts: int = 4
    num_gates: int = 1
    gate_scale: str = "preserve"
    dispatch: str = "dropless"
    capacity_factor: float = 1.25
    load_balance_loss: float = 0.0
    router_z_loss: float = 0.0
    jitter: float = 0.0
    impl: str = "auto"
    gate_embedding: int = 0
    combine: str = "top1"
    shared_share: float = 0.0
    layers: str | tuple[int, ...] = "all"
    gate_init: str = "small"
    route_by: str = "token"

    @classmethod
    def from_section(cls, moe: MoeSection, num_gates: int) -> "RoutingOptions":
        """Return what a configuration's section says, for so many gates."""
        names = {field.name for field in fields(cls)} - {"num_gates"}
        return cls(num_gates=num_gates, **{name: getattr(moe, name) for name in names})

    @property
    def has_losses(self) -> bool:
        """True where an auxiliary loss is asked for."""
        return self.load_balance_loss > 0 or self.router_z_loss > 0

    @property
    def is_plain(self) -> bool:
        """True where nothing but the choice itself is asked for: the fully fused path serves it."""
        return (
            self.dispatch == "dropless"
            and self.route_by == "token"
            and self.jitter == 0
            and not self.has_losses
        )

    def __post_init__(self) -> None:
        if self.num_experts < 1 or self.num_gates < 1:
            raise ValueError(
                f"num_experts and num_gates must be at least 1, "
                f"got {self.num_experts} and {self.num_gates}"
            )
        if self.gate_scale not in moe_kernels.GATE_SCALES:
            raise ValueError(
                f"gate_scale is one of {moe_kernels.GATE_SCALES}, got {self.gate_scale!r}"
            )
        if self.dispatch not in DISPATCHES:
            raise ValueError(f"dispatch is one of {DISPATCHES}, got {self.dispatch!r}")
        for name, allowed in (
            ("combine", COMBINES),
            ("gate_init", GATE_INITS),
            ("route_by", ROUTED_BY),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {allowed}, got {getattr(self, name)!r}")
        check_levers(self)
        if isinstance(self.layers, list):  # of a description's JSON
            object.__setattr__(self, "layers", tuple(self.layers))
        if not 0 <= self.shared_share < 1:
            raise ValueError(f"shared_share must be in [0, 1), got {self.shared_share}")
        for name in ("load_balance_loss", "router_z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be in [0, 1), got {self.jitter}")
        if self.gate_embedding < 0:
            raise ValueError(f"gate_embedding must not be negative, got {self.gate_embedding}")
        if self.capacity_factor <= 0:
            raise ValueError(f"capacity_factor must be positive, got {self.capacity_factor}")


class GateMatrix(NonDynamicallyQuantizableLinear):
    """All gates of a layer as one matrix `weight` [G * E, D]; called without an input it is that.

    The kernels take the matrix. To ask the module for it runs what is hooked to it: pruning, which
    makes the weight anew at each call, and offloading, which brings it from elsewhere.
    """

    def __init__(self, hidden_size: int, options: RoutingOptions) -> None:
        super().__init__(hidden_size, options.num_gates * options.num_experts, bias=False)
        if options.gate_init == "spread":
            for of_gate in self.weight.data.split(options.num_experts):
                nn.init.orthogonal_(of_gate, gain=SPREAD_NORM)
        else:
            nn.init.normal_(self.weight, std=GATE_INIT_STD)

    def forward(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """Return the matrix, or all gates' logits of x."""
        return self.weight if x is None else super().forward(x)


class GeneratedGates(nn.Module):
    """Gates as products of a vector a gate and a generator that all gates of the layer share.

    `weight` [G * E, D] stands where nn.Linear's does: gate g is vector g times the generator. Tasks
    with like vectors route alike, and every task's examples train the generator. Source: the
    future work of the paper's appendix A.4; a vector a layer and the linear form are our choice.
    """

    def __init__(self, hidden_size: int, options: RoutingOptions) -> None:
        super().__init__()
        width = options.gate_embedding
        self._shape = (options.num_gates * options.num_experts, hidden_size)
        self.vectors = nn.Parameter(torch.randn(options.num_gates, width))
        generator = torch.empty(width, options.num_experts * hidden_size)
        # So that new gates have GATE_INIT_STD, as free ones.
        self.generator = nn.Parameter(nn.init.normal_(generator, std=GATE_INIT_STD / width**0.5))

    @property
    def weight(self) -> torch.Tensor:
        """The gates' matrix [G * E, D], computed anew at every call."""
        return (self.vectors @ self.generator).view(self._shape)

    def forward(self) -> torch.Tensor:
        """Return the gates' matrix."""
        return self.weight


def new_gates(hidden_size: int, options: RoutingOptions) -> nn.Module:
    """Return new gates: a module whose `weight` is their matrix [G * E, D], drawn.

    Where experts are merged, `weight` is the table of mixtures [G, E].
    """
    if options.combine == "merged":
        return Mixtures(options.num_gates, options.num_experts)
    if options.gate_embedding:
        return GeneratedGates(hidden_size, options)
    return GateMatrix(hidden_size, options)


def gate_matrix(gates: nn.Module) -> torch.Tensor:
    """Return the matrix [G * E, D] of a layer's `gate.wg`; of merged experts, the table [G, E].

    Raises ValueError where a module of another kind stands around it or in its place: an adapter's
    share of the logits would be lost.
    """
    if not isinstance(gates, GateMatrix | GeneratedGates | Mixtures):
        raise ValueError(
            f"gate.wg is a {type(gates).__name__}: gates cannot be wrapped or replaced; "
            f"allowed: leave the modules named wg out of adapters and quantisation"
        )
    return gates()


def route_tokens(
    x: torch.Tensor,
    gate_weight: torch.Tensor,
    gate_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    options: RoutingOptions,
    training: bool,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[moe_kernels.Routing, torch.Tensor]:
    """Return each token's expert and gate value, and the weighted auxiliary loss (a scalar).

    x [batch, seq, D]; gate_weight [G * E, D]; gate_ids [batch] or [batch, seq], None for one gate;
    mask [batch, seq]: 1 = real token; the others are neither routed nor counted. cu_seqlens: where
    sequences start, read by route_by "sequence" (route_sequences); auxiliary losses are then over
    sequences. Raises ValueError for gate ids that are missing, of another shape or outside the
    gates.
    """
    if training and options.jitter > 0:
        x = x * torch.empty_like(x).uniform_(1 - options.jitter, 1 + options.jitter)
    if options.route_by == "sequence":
        routing, decisions = route_sequences(
            x,
            gate_weight,
            gate_ids,
            mask,
            cu_seqlens,
            options.num_experts,
            options.has_losses,
            options.impl,
        )
    else:
        routing = decisions = moe_kernels.route(
            x,
            gate_weight,
            gate_ids,
            options.num_experts,
            mask,
            with_logits=options.has_losses,
            impl=options.impl,
        )
    if options.has_losses:
        aux_loss = routing_losses(decisions, options, all_routed=mask is None)
    else:
        aux_loss = torch.zeros((), dtype=torch.float32, device=x.device)
    if training and options.dispatch == "capacity":
        routed = int(routing.counts_E.sum())
        capacity = math.ceil(routed / options.num_experts * options.capacity_factor)
        routing = moe_kernels.limit_capacity(routing, capacity)
    return routing, aux_loss


def routing_losses(
    routing: moe_kernels.Routing, options: RoutingOptions, all_routed: bool = False
) -> torch.Tensor:
    """Return load_balance_loss * L_balance + router_z_loss * L_z over the routed tokens.

    all_routed: every token is, as the caller knows; to look for the others a host waits for a GPU.

    L_balance = E * sum_e (share of tokens sent to e) * (mean probability of e); 1 when even.
    Source: Fedus et al. 2021, eq. 4-6. L_z = mean of logsumexp(logits)^2; Zoph et al. 2022, eq. 5.
    """
    logits_RE = routing.logits_TE
    if not all_routed:
        logits_RE = logits_RE[routing.expert_T >= 0]
    rows = max(logits_RE.shape[0], 1)
    loss = logits_RE.new_zeros(())
    if options.load_balance_loss > 0:
        mean_prob_E = torch.softmax(logits_RE, dim=-1).sum(dim=0) / rows
        share_E = routing.counts_E.to(mean_prob_E.dtype) / rows
        balance = options.num_experts * (share_E * mean_prob_E).sum()
        loss = loss + options.load_balance_loss * balance
    if options.router_z_loss > 0:
        z = torch.logsumexp(logits_RE, dim=-1).square().sum() / rows
        loss = loss + options.router_z_loss * z
    return loss
