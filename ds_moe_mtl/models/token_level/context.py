"""Gate ids for every MoE layer of one forward call, and what the layers report of it.

The model's layers share a CallScope; its `use` puts a GateCall in force for one forward call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import nn

from ds_moe_mtl.models.calls import CallScope


@dataclass
class LayerRoute:
    """What one MoE layer did with its tokens in one call."""

    expert_T: torch.Tensor
    prob_T: torch.Tensor

    def first(self, num_tokens: int) -> "LayerRoute":
        """Return the route of the first tokens."""
        return LayerRoute(self.expert_T[:num_tokens], self.prob_T[:num_tokens])


_ROUTES: ContextVar[list[LayerRoute] | None] = ContextVar("ds_moe_mtl_routes", default=None)


@contextmanager
def kept_routes(routes: list[LayerRoute] | None = None) -> Iterator[list[LayerRoute]]:
    """Collect the routes of the MoE layers that run inside the block, in this thread."""
    routes = [] if routes is None else routes
    token = _ROUTES.set(routes)
    try:
        yield routes
    finally:
        _ROUTES.reset(token)


def keep_route(route: LayerRoute | None) -> None:
    """Give an MoE layer's route to `kept_routes`, where somebody asked for routes.

    None: no token was routed (merged experts, or tied ones).
    """
    routes = _ROUTES.get()
    if routes is not None and route is not None:
        routes.append(route)


@dataclass
class GateCall:
    """One forward call: gate ids [batch] or [batch, seq], the mask of real tokens, the results.

    direct: the call was opened by the upcycled model's own forward, not by `CallScope.use`.
    task_ids, questions: of each sequence, for a task router (B sequences; questions may be None).
    without_graph: the layers run for their outputs alone, and again in the backward pass.
    cu_seqlens: where sequences start, for layers that route by sequence.
    """

    gate_ids: torch.Tensor | None
    mask: torch.Tensor | None = None
    keep_routes: bool = False
    direct: bool = False
    task_ids: torch.Tensor | None = None
    questions: torch.Tensor | None = None
    without_graph: bool = False
    cu_seqlens: torch.Tensor | None = None
    aux_losses: list[torch.Tensor] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)
    routes: list[LayerRoute] = field(default_factory=list)

    def again(self) -> "GateCall":
        """Return the call for a second run of a layer: its results are not counted twice."""
        return GateCall(self.gate_ids, self.mask, cu_seqlens=self.cu_seqlens)


class CheckpointInCall:
    """A transformer layer's checkpointing function, which runs the layer in its call both times.

    The second run is in the backward pass: the call is over then, and the thread another.
    """

    def __init__(self, checkpoint: Callable, scope: CallScope[GateCall]) -> None:
        self.checkpoint = checkpoint
        self.scope = scope

    def __call__(self, layer: Callable, *args):
        """Return what `checkpoint` gives of the layer's run on these arguments."""
        call = self.scope.call
        if call is None:
            return self.checkpoint(layer, *args)
        wants_graph, ran = torch.is_grad_enabled(), False

        def run(*inputs):
            nonlocal ran
            own, ran = call.again() if ran else call, True
            own.without_graph = wants_graph and not torch.is_grad_enabled()
            with self.scope.use(own):
                return layer(*inputs)

        return self.checkpoint(run, *args)


class RoutedFFN(nn.Module):
    """Stands where a transformer layer's FFN stood: fetches the gate ids, runs the MoE layer.

    `moe` is the plain MoELayer or DeepSpeed's TaskMoE: both map (hidden_states, used_token,
    gate_ids) to (output, aux_loss, counts).
    """

    def __init__(self, moe: nn.Module, scope: CallScope[GateCall]) -> None:
        super().__init__()
        self.moe = moe
        self.scope = scope

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        call = self.scope.call
        if call is None:
            call = GateCall(gate_ids=None)
        if call.without_graph and self.moe.options.has_losses:
            raise ValueError(
                "use_reentrant=True loses the gates' auxiliary losses (load_balance_loss, "
                "router_z_loss); allowed: use_reentrant=False, transformers' default"
            )
        if call.keep_routes:
            with kept_routes(call.routes):
                y, aux_loss, counts = self._run(hidden_states, call)
        else:
            y, aux_loss, counts = self._run(hidden_states, call)
        call.aux_losses.append(aux_loss)
        call.counts.append(counts)
        return y

    def _run(self, hidden_states: torch.Tensor, call: GateCall):
        more = {} if call.cu_seqlens is None else {"cu_seqlens": call.cu_seqlens}
        return self.moe(hidden_states, used_token=call.mask, gate_ids=call.gate_ids, **more)
