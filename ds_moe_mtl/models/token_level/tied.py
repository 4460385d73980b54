"""Tied experts: until a step of training the copies of a layer are one FFN, then they part.

While tied, every real token passes that one FFN, as in the dense model: nothing is routed and the
gates rest, because between copies there is nothing to choose. Each of the E copies gets the FFN's
gradient g as g / sqrt(E): then all move alike, and the norm of their gradients together is |g|, so
that clipping sees one network. Adam divides the factor out again (its eps is divided by sqrt(E)
too: engine.levers), so each copy's update is the dense FFN's. When the copies part they keep
their moments: those of gradients smaller by sqrt(E), which is what an expert's own gradients are
where it gets 1 / E of the tokens and these differ from each other more than they agree.

Source: EvoMoE (Nie et al., 2112.14397), one expert first. That gates rest and how the norm is
counted are our choice. E experts, D hidden size.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ds_moe_mtl.models.dropout import dropout
from ds_moe_mtl.models.token_level.experts import FeedForward, activate
from moe_kernels.first_order import first_order


def tied_ffn(
    x: torch.Tensor,
    experts: Sequence[nn.Module],
    gate_weight: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return the one FFN's output in x's shape; 0, without gradient, where mask is 0.

    experts: identical FeedForwards. The gates' gradient is zero, not None. Raises ValueError for
    experts of another form.
    """
    if not all(isinstance(expert, FeedForward) for expert in experts):
        raise ValueError(f"tied experts that are {type(experts[0]).__name__}; allowed: FeedForward")
    first = experts[0]
    kinds = zip(
        *((e.fc1.weight, e.fc1.bias, e.fc2.weight, e.fc2.bias) for e in experts), strict=True
    )
    w1, b1, w2, b2 = (
        None if copies[0] is None else _Tied.apply(gate_weight, *copies) for copies in kinds
    )
    h = activate(nn.functional.linear(x, w1, b1), first.activation)
    y = nn.functional.linear(dropout(h, first.dropout, first.training), w2, b2)
    if mask is not None:
        y = y.masked_fill((mask == 0).reshape(x.shape[:-1]).unsqueeze(-1), 0.0)
    return y


def tied_share(num_experts: int) -> float:
    """Return what a tied copy's gradient, and Adam's eps beside it, is multiplied by."""
    return 1 / math.sqrt(num_experts)


class _Tied(torch.autograd.Function):
    """The first of E copies; each copy gets the gradient / sqrt(E), the gates get zeros."""

    @staticmethod
    def forward(ctx, gate_weight, *copies):
        ctx.gates, ctx.copies = gate_weight.shape, len(copies)
        return copies[0].view_as(copies[0])

    @staticmethod
    @first_order
    def backward(ctx, grad):
        share = grad * tied_share(ctx.copies)
        return grad.new_zeros(ctx.gates), *[share.clone() for _ in range(ctx.copies)]
