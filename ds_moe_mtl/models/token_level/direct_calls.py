"""Calls of an upcycled transformers model itself: `model(..., gate_ids=...)`.

Hooks of the model open a GateCall before its forward and close it afterwards; they make
transformers' own activation checkpointing run in that call, and bring the auxiliary losses to the
loss that transformers computes.
"""

import weakref
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import nn

from ds_moe_mtl.models.calls import CallScope
from ds_moe_mtl.models.token_level.context import CheckpointInCall, GateCall, RoutedFFN

_LOSSES: ContextVar[Mapping[weakref.ref, torch.Tensor]] = ContextVar(
    "ds_moe_mtl_auxiliary_losses", default=MappingProxyType({})
)
"""The auxiliary loss of each model's last direct call, by the model's scope."""


def routed_ffns(model: nn.Module) -> list[RoutedFFN]:
    """Return the RoutedFFN of every upcycled layer, in order of depth; empty for a dense model."""
    return [module for module in model.modules() if isinstance(module, RoutedFFN)]


def call_scope(model: nn.Module) -> CallScope[GateCall] | None:
    """Return the scope that the model's MoE layers share, or None for a dense model.

    It looks through all modules: ask once, not at every call.
    """
    ffns = routed_ffns(model)
    return ffns[0].scope if ffns else None


def auxiliary_loss(model: nn.Module) -> torch.Tensor:
    """Return the weighted auxiliary losses of all MoE layers in the model's last call, a scalar.

    The last call of the upcycled model itself in this thread; differentiable, 0 where none is asked
    for. Where transformers computes a loss (labels were given), that loss holds it already. Raises
    ValueError for a dense model and for one that this thread has not called.
    """
    scope = call_scope(model)
    if scope is None:
        raise ValueError(f"{type(model).__name__} has no MoE layer; allowed: an upcycled model")
    loss = _LOSSES.get().get(weakref.ref(scope))
    if loss is None:
        raise ValueError(f"{type(model).__name__} has not been called in this thread")
    return loss


class DirectCalls:
    """Opens and closes the calls of one upcycled model."""

    def __init__(
        self, scope: CallScope[GateCall], blocks: Iterable[nn.Module], has_losses: bool
    ) -> None:
        """blocks: the modules that transformers' activation checkpointing may run twice.
        has_losses: the MoE layers have auxiliary losses."""
        self.scope = scope
        self.blocks = tuple(blocks)
        self.has_losses = has_losses

    def attach(self, model: nn.Module) -> None:
        """Open and close a call at every forward of the model."""
        model.register_forward_pre_hook(self.open, with_kwargs=True)
        model.register_forward_hook(self.close, with_kwargs=True, always_call=True)

    def open(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Put a call in force with the `gate_ids` (and 2-D mask) given to the model itself."""
        for block in self.blocks:
            if block.gradient_checkpointing and block.training:
                run = block._gradient_checkpointing_func
                if not (isinstance(run, CheckpointInCall) and run.scope is self.scope):
                    block._gradient_checkpointing_func = CheckpointInCall(run, self.scope)
        gate_ids = kwargs.pop("gate_ids", None)
        # A direct call that is still in force was interrupted (KeyboardInterrupt closes none).
        if self.scope.call is not None and not self.scope.call.direct:
            if gate_ids is not None:
                raise ValueError("gate_ids are given twice: as a keyword and by CallScope.use")
            return args, kwargs
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is not None and mask.dim() != 2:
            mask = None
        self.scope.enter(GateCall(gate_ids, mask, direct=True))
        return args, kwargs

    def close(self, model: nn.Module, args: tuple, kwargs: dict, output):
        """End the call; return the output, its loss with the auxiliary losses where there are."""
        call = self.scope.call
        if call is None or not call.direct:
            return output
        self.scope.enter(None)
        if output is None or not call.aux_losses:  # the forward failed
            return output
        first, *others = call.aux_losses
        aux_loss = sum((loss.to(first.device) for loss in others), start=first)
        alive = {scope: loss for scope, loss in _LOSSES.get().items() if scope() is not None}
        _LOSSES.set({**alive, weakref.ref(self.scope): aux_loss})
        return _with_loss(output, aux_loss) if self.has_losses else output


def _with_loss(output, aux_loss: torch.Tensor):
    """Return a transformers output whose loss, where it has one, is increased by aux_loss."""
    loss = getattr(output, "loss", None)
    if loss is not None:
        output.loss = loss + aux_loss.to(loss)
    elif isinstance(output, tuple) and isinstance(output[0], torch.Tensor) and output[0].dim() == 0:
        return (output[0] + aux_loss.to(output[0]), *output[1:])  # return_dict=False
    return output
