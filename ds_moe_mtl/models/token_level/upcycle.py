"""Dense encoder to sparse encoder, in place: every FFN becomes an MoE layer of its own copies.

Source: "Sparsely Activated MoE are Robust Multi-Task Learners", sec. 4.3; footnote 2 for noise.
"""

import math

import torch
from torch import nn

from ds_moe_mtl.models.calls import CallScope
from ds_moe_mtl.models.families import FFN, Family, ffn_layers
from ds_moe_mtl.models.families.rope import keep_rope_exact
from ds_moe_mtl.models.token_level.context import GateCall, RoutedFFN
from ds_moe_mtl.models.token_level.direct_calls import DirectCalls, routed_ffns
from ds_moe_mtl.models.token_level.experts import FeedForward, activation_of
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.models.token_level.pads import check_pads
from ds_moe_mtl.models.token_level.plain_saving import refuse_plain_saving
from ds_moe_mtl.models.token_level.sparse_layers import sparse_layers


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
    """Return `model` with an MoELayer of copied experts in place of its FFNs (options.layers).

    Takes any transformers model whose layers have the FFN of a family (models.families). It then
    takes
    `gate_ids` ([batch] or [batch, seq]) as a further keyword; its 2-D attention_mask keeps pads
    from being routed. `options` replaces the three short arguments. `expert_noise`: standard
    deviation of noise added to each copy; `expert_dropout`: between its two layers, in training.
    Auxiliary losses are in the loss that transformers computes (`auxiliary_loss` gives them by
    themselves); the model is saved by `save_upcycled`, and by `save_pretrained` no more.
    Raises ValueError for a model without such layers, with one whose FFN holds or does more than
    its linear maps and an activation that experts have, or whose pads reach real tokens; the
    model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"upcycle takes a transformers model, such as BertModel, not {model!r:.60}"
        )
    _check_numbers(expert_noise, expert_dropout)
    if options is None:
        options = RoutingOptions(
            num_experts=num_experts, num_gates=num_gates, gate_scale=gate_scale
        )
    if routed_ffns(model):
        raise ValueError(f"{type(model).__name__} is upcycled already")
    family, layers = ffn_layers(model)
    layers = [layers[number] for number in sparse_layers(options.layers, len(layers))]
    parts = [_checked_ffn(family, layer, model.config) for layer in layers]
    check_pads(model)
    keep_rope_exact(model)
    scope: CallScope[GateCall] = CallScope()
    for layer, ffn in zip(layers, parts, strict=True):
        expert = _copied_ffn(ffn, expert_dropout)
        moe = MoELayer(expert.fc1.in_features, expert, options).to(expert.fc1.weight)
        for copy in moe.experts if expert_noise > 0 else ():
            for parameter in copy.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=expert_noise)
        family.put_ffn(layer, RoutedFFN(moe, scope).train(layer.training))
    blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    DirectCalls(scope, blocks, options.has_losses).attach(model)
    refuse_plain_saving()
    return model


def _check_numbers(expert_noise: float, expert_dropout: float) -> None:
    if not 0 <= expert_dropout < 1 or not 0 <= expert_noise < math.inf:
        raise ValueError(
            f"expert_dropout = {expert_dropout}, expert_noise = {expert_noise}; allowed: a dropout "
            f"in [0, 1), a noise of 0 or more"
        )


@torch.no_grad()
def _checked_ffn(family: Family, layer: nn.Module, config) -> FFN:
    """Return a layer's FFN. Raises ValueError where an expert made of it would do something else.

    Its structure is the family's to judge; two tokens tell whether it does what it looks like,
    where there are weights to try (none on the meta device).
    """
    ffn = family.ffn(layer, config)
    with torch.random.fork_rng(devices=[]):  # a new module draws, before the copy
        expert, weight = _copied_ffn(ffn, dropout=0.0), ffn.second.weight
    if weight.is_meta:
        return ffn
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(2, ffn.hidden_size, generator=generator).to(weight)
    modes = [(module, module.training) for module in layer.modules()]
    expected_TD = family.run_ffn(layer.eval(), x_TD)
    for module, training in modes:
        module.training = training
    # Products of these weights are as large as their widths; the type rounds each to its eps.
    tolerance = 8 * torch.finfo(weight.dtype).eps * float(expected_TD.abs().max().clamp(min=1))
    difference = float((expert(x_TD) - expected_TD).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"{type(layer).__name__} cannot be upcycled: its FFN differs by {difference:.2g} from "
            f"its linear maps with {ffn.hidden_act} between them"
        )
    return ffn


def _copied_ffn(ffn: FFN, dropout: float) -> FeedForward:
    """Return an expert with a copy of the FFN's weights."""
    activation = activation_of(ffn.hidden_act, ffn.gated)
    expert = FeedForward(ffn.hidden_size, ffn.inner_size, activation, dropout, ffn.has_bias)
    expert = expert.to(ffn.second.weight)
    expert.load_state_dict(ffn.weights())
    return expert
