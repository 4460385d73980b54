"""Which launch attends to which sequences: known to the host, which waits for no device.

B sequences, longest first, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = (16, 32, 64, 128)
"""Tokens that a program can hold: a sequence has the smallest block that holds it."""
LARGEST_BLOCK = BLOCKS[-1]


@dataclass(frozen=True)
class Bucket:
    """The sequences [first, first + count), which take one launch with this block."""

    first: int
    count: int
    block: int


@dataclass(frozen=True)
class SequencePlan:
    """Where the sequences of a batch lie, and by which launch each is attended to.

    ends int32 [B + 1], on the device, from 0. tokens: of all sequences. The first long_sequences
    are longer than the largest block and have long_tokens; longest: tokens of the longest of all.
    """

    ends: Tensor
    tokens: int
    long_sequences: int
    long_tokens: int
    longest: int
    buckets: tuple[Bucket, ...]


def plan_of(
    lengths: Sequence[int], device: torch.device, ends: Tensor | None = None
) -> SequencePlan:
    """Return the plan of sequences of `lengths` tokens, longest first.

    ends: as in SequencePlan, where it is on the device already. Raises ValueError for lengths that
    do not descend: a launch takes sequences that lie together.
    """
    if any(a < b for a, b in zip(lengths, lengths[1:], strict=False)):
        raise ValueError(f"lengths {list(lengths)[:8]}... must descend: longest sequence first")
    if ends is None:
        ends = torch.tensor([0, *lengths]).cumsum(0)
    long = sum(length > LARGEST_BLOCK for length in lengths)
    buckets, first = [], long
    for block, below in zip(reversed(BLOCKS), (*reversed(BLOCKS[:-1]), 0), strict=True):
        count = sum(below < length <= block for length in lengths)
        if count:
            buckets.append(Bucket(first, count, block))
        first += count
    return SequencePlan(
        ends.to(device, torch.int32),
        sum(lengths),
        long,
        sum(lengths[:long]),
        max(lengths, default=0),
        tuple(buckets),
    )
