"""Dense encoder to sparse encoder, in place: every FFN becomes an MoE layer of its own copies.

Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.3; footnote 2 for noise.
"""

from collections.abc import Iterator

import torch
from torch import nn

from ds_moe_mtl.models.calls import CallScope
from ds_moe_mtl.models.token_level.context import GateCall, RoutedFFN
from ds_moe_mtl.models.token_level.direct_calls import DirectCalls, routed_ffns
from ds_moe_mtl.models.token_level.experts import FeedForward, activation_of
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.models.token_level.plain_saving import refuse_plain_saving


def upcycle(
    model: nn.Module,
    num_experts: int = RoutingOptions.num_experts,
    num_gates: int = 8,
    gate_scale: str = RoutingOptions.gate_scale,
    *,
    options: RoutingOptions | None = None,
    expert_noise: float = 0.0,
    expert_dropout: float = 0.0,
) -> nn.Module:
    """Return `model` with an MoELayer of copied experts in place of every FFN.

    Takes any transformers model whose layers have BERT's shape (`intermediate.dense`,
    `output.dense`): BERT, MiniLM, RoBERTa, XLM-R, CamemBERT, ELECTRA. The model then takes
    `gate_ids` ([batch] or [batch, seq]) as a further keyword; its 2-D attention_mask keeps pads
    from being routed. `options` replaces the three short arguments. `expert_noise`: standard
    deviation of noise added to each copy; `expert_dropout`: between its two layers, in training.
    Auxiliary losses are in the loss that transformers computes (`auxiliary_loss` gives them by
    themselves); the model is saved by `save_upcycled`, and by `save_pretrained` no more.
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
    if routed_ffns(model):
        raise ValueError(f"{type(model).__name__} is upcycled already")
    scope: CallScope[GateCall] = CallScope()
    for layer in layers:
        expert = _copied_ffn(layer, activation_of(model.config.hidden_act), expert_dropout)
        moe = MoELayer(expert.fc1.in_features, expert, options).to(expert.fc1.weight)
        for copy in moe.experts if expert_noise > 0 else ():
            for parameter in copy.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=expert_noise)
        layer.intermediate = RoutedFFN(moe, scope).train(layer.training)
        layer.output.dense = nn.Identity()
    blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    DirectCalls(scope, blocks, options.has_losses).attach(model)
    refuse_plain_saving()
    return model


def ffn_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the transformer layers of BERT's shape, dense or upcycled, in order of depth."""
    for module in model.modules():
        if hasattr(module, "intermediate") and hasattr(getattr(module, "output", None), "dense"):
            yield module


def _copied_ffn(layer: nn.Module, activation: str, dropout: float) -> FeedForward:
    first, second = layer.intermediate.dense, layer.output.dense
    expert = FeedForward(first.in_features, first.out_features, activation, dropout)
    expert = expert.to(first.weight)
    expert.fc1.load_state_dict(first.state_dict())
    expert.fc2.load_state_dict(second.state_dict())
    return expert
