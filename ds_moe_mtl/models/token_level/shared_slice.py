"""A shared slice: the first neurons of an FFN see every token, copies of the rest are the experts.

An FFN is a sum over its inner neurons, y = sum_f w2_f gelu(w1_f x + b1_f) + b2, so it may be cut
between any two; a neuron of a gated FFN has two rows of w1, one in each half. The shared part has
the outer bias b2, where there is one; the experts' own outer biases begin at 0. A token then passes
as many neurons as in the dense FFN.
"""

import torch
from torch import nn

from ds_moe_mtl.models.token_level.experts import FeedForward
from moe_kernels import ACTIVATIONS

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
    cut = shared_neurons(share, ffn.inner)
    shared = _empty_like(ffn, cut, dropout=0.0)
    rest = _empty_like(ffn, ffn.inner - cut, ffn.dropout)
    for part, neurons in ((shared, slice(0, cut)), (rest, slice(cut, ffn.inner))):
        for own, whole in zip(_by_neuron(part), _by_neuron(ffn), strict=True):
            own.copy_(whole[neurons])
    if ffn.fc2.bias is not None:
        shared.fc2.bias.copy_(ffn.fc2.bias)
        rest.fc2.bias.zero_()
    return shared, rest


@torch.no_grad()
def join_ffn(shared: FeedForward, rest: FeedForward) -> FeedForward:
    """Return the FFN that is the sum of both, what split_ffn was given."""
    ffn = _empty_like(rest, shared.inner + rest.inner, rest.dropout)
    for whole, *parts in zip(*map(_by_neuron, (ffn, shared, rest)), strict=True):
        whole.copy_(torch.cat(parts))
    if ffn.fc2.bias is not None:
        ffn.fc2.bias.copy_(shared.fc2.bias + rest.fc2.bias)
    return ffn


def _empty_like(ffn: FeedForward, inner: int, dropout: float) -> FeedForward:
    """Return an FFN of `ffn`'s form, type and mode with so many neurons, its weights to be set."""
    bias = ffn.fc1.bias is not None
    part = FeedForward(ffn.fc1.in_features, inner, ffn.activation, dropout, bias)
    return part.to(ffn.fc1.weight).train(ffn.training)


def _by_neuron(ffn: FeedForward) -> list[torch.Tensor]:
    """Return views of all that belongs to single neurons, whose first dimension they are."""
    halves = ACTIVATIONS[ffn.activation].halves
    of_first = [ffn.fc1.weight] if ffn.fc1.bias is None else [ffn.fc1.weight, ffn.fc1.bias]
    return [*(half for tensor in of_first for half in tensor.chunk(halves)), ffn.fc2.weight.t()]


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
