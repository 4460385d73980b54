"""Sequences that hold a batch's filling: tokens that make its shapes come again.

B sequences, T tokens of them all.
"""

from collections.abc import Sequence

import torch


def filling_sequences(
    ends: torch.Tensor, lengths: Sequence[int], size: int, sequences: int | None = None
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return (ends [B' + 1], lengths [B']) of a batch filled up from T to `size` tokens.

    ends int32 [B + 1] with its lengths, as the host knows them. The filling is in sequences of its
    own behind the others, none of them longer than the longest: that would give attention more to
    launch. sequences: B', at least `sequences_needed`; sequences without tokens make it up. The
    host waits for no device.
    """
    total, longest = sum(lengths), max(lengths)
    needed = sequences_needed(lengths, size)
    sequences = needed if sequences is None else sequences
    assert size >= total and sequences >= needed, (size, total, sequences, needed)
    more = sequences - len(lengths)
    steps = torch.arange(1, more + 1, dtype=ends.dtype, device=ends.device)
    tails = (total + longest * steps).clamp(max=size)
    places = [min(total + longest * step, size) for step in range(more + 1)]
    filled = tuple(stop - start for start, stop in zip(places, places[1:], strict=False))
    return torch.cat([ends, tails]), (*lengths, *filled)


def sequences_needed(lengths: Sequence[int], size: int) -> int:
    """Return how many sequences a batch of such lengths has when it is filled up to `size`."""
    return len(lengths) + -(-(size - sum(lengths)) // max(lengths))
