"""The tensors' memory while something runs: what torch's own allocators took and gave back.

On a GPU these are the CUDA allocator's counters. On a CPU, where torch keeps none, they are the
allocations that torch.profiler reports, summed in order of time; what the C library keeps beyond
them is not seen.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Allocated(NamedTuple):
    """Bytes relative to the start: the most held at a time, and what is still held at the end."""

    peak: int
    held: int


class AllocationMeter:
    """Adds up what is held after each measured part; parts measured nowhere are not seen."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held = 0
        self.peak = 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the allocations of the block."""
        found: list[Allocated] = []
        with _counted(self.device, found.append):
            yield
        self.peak = max(self.peak, self.held + found[0].peak)
        self.held += found[0].held


@contextmanager
def _counted(device: torch.device, tell: Callable[[Allocated], None]) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        tell(Allocated(peak, torch.cuda.memory_allocated(device) - before))
        return
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        yield
        gc.collect()  # what reference cycles hold would be freed unseen
    tell(_summed(profile))


def _summed(profile: torch.profiler.profile) -> Allocated:
    events = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return Allocated(peak, held)
