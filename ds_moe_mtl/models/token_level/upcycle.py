"""Dense encoder to sparse encoder, in place: every FFN becomes an MoE layer of its own copies.

Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.3; footnote 2 for noise.
"""

from collections.abc import Iterator

import torch
from torch import nn

from ds_moe_mtl.models.token_level.context import GateCall, GateContext, RoutedFFN
from ds_moe_mtl.models.token_level.experts import FeedForward, activation_of
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers


def upcycle(
    model: nn.Module,
    num_experts: int = 4,
    num_gates: int = 8,
    gate_scale: str = "paper",
    *,
    options: RoutingOptions | None = None,
    expert_noise: float = 0.0,
    expert_dropout: float = 0.0,
) -> nn.Module:
    """Return `model` with an MoELayer of copied experts in place of its FFNs (options.layers).

    Takes any transformers model whose layers have BERT's shape (`intermediate.dense`,
    `output.dense`): BERT, MiniLM, RoBERTa, XLM-R, CamemBERT, ELECTRA. The model then takes
    `gate_ids` ([batch] or [batch, seq]) as a further keyword; its 2-D attention_mask keeps pads
    from being routed. `options` replaces the three short arguments. `expert_noise`: standard
    deviation of noise added to each copy; `expert_dropout`: between its two layers, in training.
    Raises ValueError for a model without such layers.
    """
    if options is None:
        options = RoutingOptions(
            num_experts=num_experts, num_gates=num_gates, gate_scale=gate_scale
        )
    layers = list(ffn_layers(model))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layer of BERT's shape (intermediate.dense and "
            f"output.dense); allowed: BERT-family encoders"
        )
    if any(isinstance(layer.intermediate, RoutedFFN) for layer in layers):
        raise ValueError(f"{type(model).__name__} is upcycled already")
    context = GateContext()
    for layer in [layers[number] for number in sparse_layers(options.layers, len(layers))]:
        expert = _copied_ffn(layer, activation_of(model.config.hidden_act), expert_dropout)
        moe = MoELayer(expert.fc1.in_features, expert, options).to(expert.fc1.weight)
        for copy in moe.experts if expert_noise > 0 else ():
            for parameter in copy.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=expert_noise)
        layer.intermediate = RoutedFFN(moe, context)
        layer.output.dense = nn.Identity()
    model.register_forward_pre_hook(_take_gate_ids, with_kwargs=True)
    model.register_forward_hook(_end_call, always_call=True)
    return model


def ffn_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the transformer layers of BERT's shape, dense or upcycled, in order of depth."""
    for module in model.modules():
        if hasattr(module, "intermediate") and hasattr(getattr(module, "output", None), "dense"):
            yield module


def routed_ffns(model: nn.Module) -> list[RoutedFFN]:
    """Return the RoutedFFN of every upcycled layer, in order of depth; empty for a dense model."""
    return [module for module in model.modules() if isinstance(module, RoutedFFN)]


def gate_context(model: nn.Module) -> GateContext | None:
    """Return the context that the model's MoE layers share, or None for a dense model."""
    ffns = routed_ffns(model)
    return ffns[0].context if ffns else None


def _copied_ffn(layer: nn.Module, activation: str, dropout: float) -> FeedForward:
    first, second = layer.intermediate.dense, layer.output.dense
    expert = FeedForward(first.in_features, first.out_features, activation, dropout)
    expert = expert.to(first.weight)
    expert.fc1.load_state_dict(first.state_dict())
    expert.fc2.load_state_dict(second.state_dict())
    return expert


def _take_gate_ids(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Open a call with the `gate_ids` (and 2-D mask) given to the transformers model itself."""
    context = gate_context(model)
    gate_ids = kwargs.pop("gate_ids", None)
    if context.call is not None:
        if gate_ids is not None:
            raise ValueError("gate_ids are given twice: as a keyword and by GateContext.use")
        return args, kwargs
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is not None and mask.dim() != 2:
        mask = None
    context.call = GateCall(gate_ids, mask, direct=True)
    return args, kwargs


def _end_call(model: nn.Module, args: tuple, output) -> None:
    context = gate_context(model)
    if context.call is not None and context.call.direct:
        context.call = None
