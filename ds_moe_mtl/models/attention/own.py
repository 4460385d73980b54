"""Packed attention for encoders with code of their own, that is not on transformers' interface.

Their layers take the plan in the place of an attention mask: as an argument it reaches attention
also where torch's checkpointing runs a layer again, in another thread.

T tokens, H heads, d head size, L tokens of a group's padded sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import AttentionInterface

from ds_moe_mtl.models.attention.choice import (
    PACKED_EAGER,
    PACKED_FLASH,
    PACKED_SHORT,
    Packing,
    attention_plan,
)
from ds_moe_mtl.models.attention.flash import PackedSequences
from ds_moe_mtl.models.attention.padded import AttentionGroup, eager, padded
from encoder_kernels import SequencePlan

Terms = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""What is added to a group's scores [n or 1, H, L, L], of its query and key [n, H, L, d] and the
factor that scores are scaled by."""


@dataclass(frozen=True)
class PackedMask:
    """What stands where a layer takes its attention_mask: the attention's name and its plan."""

    attention: str
    packing: Packing

    def of(self, packing: Packing) -> "PackedMask":
        """Return the same attention with another plan."""
        return replace(self, packing=packing)


def plan_like(
    packing: Packing, lengths: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Packing:
    """Return a plan of the kind that `packing` is, for sequences of `lengths` tokens."""
    name = PACKED_EAGER
    if isinstance(packing, PackedSequences):
        name = PACKED_FLASH
    elif isinstance(packing, SequencePlan):
        name = PACKED_SHORT
    return attention_plan(name, lengths, None, device, dtype)


def attend(
    module: nn.Module,
    heads: Sequence[torch.Tensor],
    mask: PackedMask,
    scaling: float,
    terms: Terms | None = None,
) -> torch.Tensor:
    """Return attention's output [1, T, H * d] of heads: query, key and value, each [1, H, T, d].

    module: whose `dropout` drops weights. terms: what the scores have besides, for a plan of groups
    to pad; within a group a token's place in its row is its place in its sequence.
    """
    run = AttentionInterface()[mask.attention] if terms is None else padded(_with_terms(terms))
    dropout = module.dropout.p if module.training else 0.0
    out, _ = run(module, *heads, None, scaling=scaling, packing=mask.packing, dropout=dropout)
    return out.flatten(2)


def heads_of(x: torch.Tensor, head_size: int) -> torch.Tensor:
    """Return the heads [1, H, T, d] of a projection [1, T, H * d]."""
    return x.unflatten(-1, (-1, head_size)).transpose(1, 2)


def _with_terms(terms: Terms) -> Callable:
    def attend_with_terms(query, key, value, bias, scaling, dropout):
        added = terms(query, key, scaling)
        return eager(query, key, value, added if bias is None else added + bias, scaling, dropout)

    return attend_with_terms


def distances(length: int, device: torch.device) -> torch.Tensor:
    """Return how far a query can stand after a key, L - 1 down to 1 - L, int64 [2 L - 1]."""
    return torch.arange(length - 1, -length, -1, device=device)


def longest_of(groups: Sequence[AttentionGroup]) -> int:
    """Return L of the group with the longest sequences; 1 where there is no group."""
    return max((group.length for group in groups), default=1)


def nearest(of_distance: torch.Tensor, length: int, dim: int = -1) -> torch.Tensor:
    """Return the entries, along dim, for the distances in `length` tokens of those in more."""
    longest = (of_distance.shape[dim] + 1) // 2
    return of_distance.narrow(dim, longest - length, 2 * length - 1)


def by_distance(of_distance: torch.Tensor) -> torch.Tensor:
    """Return [..., L, L], at (i, j) the entry for i - j of [..., 2 L - 1] in `distances`' order."""
    length = (of_distance.shape[-1] + 1) // 2
    return of_distance.unfold(-1, length, 1).flip(-2)


def rows_by_distance(of_distance: torch.Tensor) -> torch.Tensor:
    """Return [..., L, L], at (i, j) row i's entry for i - j of [..., L, 2 L - 1].

    A view: row i's entries begin at L - 1 - i, one place earlier with each row.
    """
    *leading, row, _ = of_distance.stride()
    length = of_distance.shape[-2]
    start = of_distance.storage_offset() + length - 1
    shape = (*of_distance.shape[:-1], length)
    return of_distance.as_strided(shape, (*leading, row - 1, 1), start)
