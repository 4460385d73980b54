"""The clocks of ranks, compared with rank 0's."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import distributed as dist

MOST_SKEW = 1.0
"""Seconds that clocks may differ: beyond it logs and the ages of files mislead (our choice)."""

PINGS = 5


def clock_skews(others: Sequence[int]) -> dict[int, float]:
    """Return the seconds that the clocks of some ranks are ahead of rank 0's; on every rank.

    Rank 0 asks each in turn for its time; of several answers that of the shortest way counts.
    A collective call of all ranks.
    """
    rank = dist.get_rank()
    group = dist.new_group(backend="gloo")  # of times, in the host's memory
    skews = torch.zeros(len(others), dtype=torch.float64)
    for number, other in enumerate(others):
        answers = []
        for _ in range(PINGS):
            word = torch.zeros(1, dtype=torch.float64)
            if rank == 0:
                sent = time.time()
                dist.send(word, other, group)
                dist.recv(word, other, group)
                back = time.time()
                answers.append((back - sent, word.item() - (sent + back) / 2))
            elif rank == other:
                dist.recv(word, 0, group)
                word[0] = time.time()
                dist.send(word, 0, group)
        if answers:
            skews[number] = min(answers)[1]
    dist.broadcast(skews, 0, group)
    dist.destroy_process_group(group)
    return dict(zip(others, skews.tolist(), strict=True))


def clock_faults(skews: Mapping[int, float], hosts: Sequence[str]) -> list[str]:
    """Return a line for each rank whose clock differs too much; hosts: all ranks', in order."""
    return [
        f"rank {rank} on {hosts[rank]}: its clock is {skew:+.1f} s from rank 0's; allowed: "
        f"{MOST_SKEW:g} s"
        for rank, skew in skews.items()
        if abs(skew) > MOST_SKEW
    ]
