"""A shared slice: the first neurons of an FFN see every token, copies of the rest are the experts.

An FFN is a sum over its inner neurons, y = sum_f w2_f gelu(w1_f x + b1_f) + b2, so it may be cut
between any two. The shared part has the outer bias b2; the experts' own outer biases begin at 0.
A token then passes as many neurons as in the dense FFN.
"""

import torch
from torch import nn

from ds_moe_mtl.models.token_level.experts import FeedForward

STEPS = (64, 8)
"""Slices are multiples of 64 neurons, a kernel's smallest tile; of 8 (16 bytes in 16 bits, an
aligned load) where an FFN is too small for that."""


def shared_neurons(share: float, inner: int) -> int:
    """Return how many of an FFN's `inner` neurons are shared: the multiple of 64 nearest to share.

    The nearest multiple of 8 where that of 64 would leave one part empty. 0 for share 0. Raises
    ValueError where either part would be empty still.
    """
    if share == 0:
        return 0
    for step in STEPS:
        shared = step * round(share * inner / step)
        if 0 < shared < inner:
            return shared
    raise ValueError(
        f"moe.shared_share = {share:g} of {inner} neurons; allowed: a share that leaves "
        f"{STEPS[-1]} neurons at least on both sides"
    )


@torch.no_grad()
def split_ffn(ffn: FeedForward, share: float) -> tuple[FeedForward, FeedForward]:
    """Return (shared part, the rest): their sum is `ffn`. Dropout, if any, is the rest's.

    Raises ValueError as shared_neurons does.
    """
    hidden, inner = ffn.fc1.in_features, ffn.fc1.out_features
    cut = shared_neurons(share, inner)
    parts = []
    for neurons, dropout in ((slice(0, cut), 0.0), (slice(cut, inner), ffn.dropout)):
        part = FeedForward(hidden, neurons.stop - neurons.start, ffn.activation, dropout)
        part = part.to(ffn.fc1.weight)
        part.fc1.weight.copy_(ffn.fc1.weight[neurons])
        part.fc1.bias.copy_(ffn.fc1.bias[neurons])
        part.fc2.weight.copy_(ffn.fc2.weight[:, neurons])
        part.fc2.bias.copy_(ffn.fc2.bias if neurons.start == 0 else torch.zeros(hidden))
        parts.append(part.train(ffn.training))
    return parts[0], parts[1]


@torch.no_grad()
def join_ffn(shared: FeedForward, rest: FeedForward) -> FeedForward:
    """Return the FFN that is the sum of both, what split_ffn was given."""
    inner = shared.fc1.out_features + rest.fc1.out_features
    ffn = FeedForward(shared.fc1.in_features, inner, rest.activation, rest.dropout)
    ffn = ffn.to(shared.fc1.weight)
    ffn.fc1.weight.copy_(torch.cat([shared.fc1.weight, rest.fc1.weight]))
    ffn.fc1.bias.copy_(torch.cat([shared.fc1.bias, rest.fc1.bias]))
    ffn.fc2.weight.copy_(torch.cat([shared.fc2.weight, rest.fc2.weight], dim=1))
    ffn.fc2.bias.copy_(shared.fc2.bias + rest.fc2.bias)
    return ffn.train(rest.training)


def add_shared(
    y: torch.Tensor, shared: nn.Module | None, x: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return y, what the experts gave, with the shared part of every real token added.

    x [batch, seq, D]; mask as in MoELayer.forward: other tokens keep their 0.
    """
    if shared is None:
        return y
    of_all = shared(x)
    if mask is not None:
        of_all = of_all.masked_fill((mask == 0).reshape(x.shape[:-1]).unsqueeze(-1), 0.0)
    return y + of_all
