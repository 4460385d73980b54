"""A task of a merged model as a plain dense encoder: exact, because its FFNs are plain FFNs.

Averaging after training keeps the gain of routing (Poly, Caccia et al., 2211.03831); here nothing
is averaged that was not averaged in training.
"""

import copy

import torch
from torch import nn

from ds_moe_mtl.models.families import ffn_layers
from ds_moe_mtl.models.multitask import MultiTaskNetwork
from ds_moe_mtl.models.token_level.direct_calls import routed_ffns
from ds_moe_mtl.models.token_level.experts import ffn_weights
from ds_moe_mtl.models.token_level.merged import merge, mixture_shares
from ds_moe_mtl.models.token_level.moe_layer import MoELayer


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
    gate = int(network.gate_of_task[names.index(task)])
    return _dense(network.encoder.transformer, gate)


@torch.no_grad()
def _dense(transformer: nn.Module, gate: int) -> nn.Module:
    """Return a plain copy of an upcycled encoder with the FFNs of one gate."""
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
    for plain, sparse in zip(plain_layers, family.ffn_layers(transformer), strict=True):
        routed = routed_ffns(sparse)
        if not routed:
            continue
        moe = routed[0].moe
        share_1E = mixture_shares(moe.gate.wg.weight)[gate : gate + 1]
        w1, b1, w2, b2, _ = ffn_weights(list(moe.experts))
        first, second, _ = family.ffn(plain, config)
        for own, kind in zip(
            (first.weight, first.bias, second.weight, second.bias), (w1, b1, w2, b2), strict=True
        ):
            own.copy_(merge(share_1E, kind)[0])
            filled += 1
    assert filled == len(missing), missing  # every weight comes from the network
    return dense.eval()
