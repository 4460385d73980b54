"""A task of a sparse model as a plain dense encoder: each layer's FFN is a mixture of its experts.

Of a merged model it is exact, because a task's FFNs are plain FFNs. Averaging the experts of a
routed one after training keeps the gain of routing (Poly, Caccia et al., 2211.03831) more or less.

L sparse layers, E experts.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ds_moe_mtl.models.families import ffn_layers
from ds_moe_mtl.models.multitask import MultiTaskNetwork
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from ds_moe_mtl.models.token_level.experts import FeedForward, ffn_weights
from ds_moe_mtl.models.token_level.merged import merge, mixture_shares
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.models.token_level.shared_slice import join_ffn


def dense_encoder(network: MultiTaskNetwork, task: str) -> nn.Module:
    """Return the dense transformers encoder, in eval mode, that `network` is on one of its tasks.

    network: with merged experts, in its plain form; it stays as it is. The encoder's weights are
    copies, its class is that of the encoder the network began with. Raises ValueError for a task
    that the network does not have and for one whose experts are not merged (a token's expert then
    depends on the token, and no dense encoder does the same).
    """
    names = [spec.name for spec in network.heads.specs]
    if task not in names:
        raise ValueError(f"the model has no task {task!r}; it has: {', '.join(names)}")
    layers = [ffn.moe for ffn in routed_ffns(network)]
    if not layers or any(
        not isinstance(moe, MoELayer) or moe.options.combine != "merged" for moe in layers
    ):
        raise ValueError(
            "a dense encoder of one task needs moe.combine = merged: only then is a task's FFN one "
            "FFN for all its tokens"
        )
    return dense_copy(network, merged_shares(network, task))


def merged_shares(network: MultiTaskNetwork, task: str) -> list[torch.Tensor]:
    """Return a task's shares of the experts [E] in each layer of a merged network."""
    names = [spec.name for spec in network.heads.specs]
    gate = int(network.gate_of_task[names.index(task)])
    return [mixture_shares(ffn.moe.gate.wg.weight)[gate] for ffn in routed_ffns(network)]


@torch.no_grad()
def dense_copy(
    network: MultiTaskNetwork,
    shares: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor] | None = None,
) -> nn.Module:
    """Return a dense copy of a network's encoder, in eval mode, its class transformers' own.

    shares: for each sparse layer the experts' shares [E] of its FFN, none for a dense network.
    scales: for each what the experts' outputs are multiplied by [E]; None for 1.
    """
    transformer = network.encoder.transformer
    config = copy.deepcopy(transformer.config)
    config._attn_implementation = "eager"  # the packed one has no meaning outside the network
    dense = type(transformer)(config)
    if getattr(transformer, "pooler", None) is None and hasattr(dense, "pooler"):
        dense.pooler = None
    state = {key: t for key, t in transformer.state_dict().items() if ".moe." not in key}
    missing, unexpected = dense.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    dense.to(next(transformer.parameters()))
    filled = 0
    family, plain_layers = ffn_layers(dense)
    numbers = iter(range(len(shares)))
    for plain, sparse in zip(plain_layers, family.ffn_layers(transformer), strict=True):
        routed = routed_ffns(sparse)
        if not routed:
            continue
        number = next(numbers)
        mixed = _mixed(routed[0].moe, shares[number], None if scales is None else scales[number])
        filled += family.ffn(plain, config).take(mixed)
    assert filled == len(missing), missing  # every weight comes from the network
    return dense.eval()


def _mixed(moe: nn.Module, shares_E: torch.Tensor, scales_E: torch.Tensor | None) -> FeedForward:
    """Return one FFN: the mixture of a layer's experts and, where there is one, its shared part."""
    w1, b1, w2, b2, activation = ffn_weights(list(moe.experts))
    outer_E = shares_E if scales_E is None else shares_E * scales_E
    biased = b1 is not None
    ffn = FeedForward(w1[0].shape[1], w2[0].shape[1], activation, bias=biased).to(w1[0])
    mixed = [(ffn.fc1.weight, w1, shares_E), (ffn.fc2.weight, w2, outer_E)]
    if biased:
        mixed += [(ffn.fc1.bias, b1, shares_E), (ffn.fc2.bias, b2, outer_E)]
    for own, of_experts, weights_E in mixed:
        own.copy_(merge(weights_E[None].to(own.device), of_experts)[0])
    return ffn if moe.shared is None else join_ffn(moe.shared, ffn)
