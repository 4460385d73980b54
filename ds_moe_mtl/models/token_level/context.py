"""Gate ids for every MoE layer of one forward call.

transformers hands keyword arguments to attention but not to the feed-forward part of a layer, so
the ids travel beside the call: the model owns one GateContext, each RoutedFFN holds the same
object, and `use` scopes a GateCall to one forward call.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class LayerRoute:
    """What one MoE layer did with its tokens in one call."""

    expert_T: torch.Tensor
    prob_T: torch.Tensor

    def first(self, num_tokens: int) -> "LayerRoute":
        """Return the route of the first tokens."""
        return LayerRoute(self.expert_T[:num_tokens], self.prob_T[:num_tokens])


@dataclass
class GateCall:
    """One forward call: gate ids [batch] or [batch, seq], the mask of real tokens, the results.

    direct: the call was opened by the upcycled model's own forward, not by `GateContext.use`.
    task_ids, questions: of each sequence, for a task router (B sequences; questions may be None).
    cu_seqlens: where sequences start, for layers that route by sequence.
    """

    gate_ids: torch.Tensor | None
    mask: torch.Tensor | None = None
    keep_routes: bool = False
    direct: bool = False
    task_ids: torch.Tensor | None = None
    questions: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    aux_losses: list[torch.Tensor] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)
    routes: list[LayerRoute] = field(default_factory=list)


class GateContext:
    """Holds the GateCall in force; shared by all MoE layers of one model."""

    def __init__(self) -> None:
        self.call: GateCall | None = None

    @contextmanager
    def use(self, call: GateCall) -> Iterator[GateCall]:
        """Put `call` in force for the layers that run inside the block."""
        before, self.call = self.call, call
        try:
            yield call
        finally:
            self.call = before

    def checkpoint_contexts(self):
        """Return (forward, recompute) contexts for torch.utils.checkpoint's context_fn.

        The recomputation runs in the backward pass, when the call is over: it gets the ids again,
        but a result list of its own, so that nothing is counted twice.
        """
        call = self.call
        if call is None:
            return nullcontext(), nullcontext()
        return nullcontext(), self.use(
            GateCall(call.gate_ids, call.mask, cu_seqlens=call.cu_seqlens)
        )


class RoutedFFN(nn.Module):
    """Stands where a transformer layer's FFN stood: fetches the gate ids, runs the MoE layer.

    `moe` is the plain MoELayer or DeepSpeed's TaskMoE: both map (hidden_states, gate_ids,
    used_token) to (output, aux_loss, counts).
    """

    def __init__(self, moe: nn.Module, context: GateContext) -> None:
        super().__init__()
        self.moe = moe
        self.context = context

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        call = self.context.call
        if call is None:
            call = GateCall(gate_ids=None)
        more = {} if call.cu_seqlens is None else {"cu_seqlens": call.cu_seqlens}
        y, aux_loss, counts = self.moe(hidden_states, call.gate_ids, used_token=call.mask, **more)
        call.aux_losses.append(aux_loss)
        call.counts.append(counts)
        if call.keep_routes:
            call.routes.append(self.moe.last_route())
        return y
