"""The most memory that a process had so far, as rows of metrics.jsonl have it."""

import resource
import sys

import torch

_GIB = 2**30
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of what getrusage counts


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return {"host_memory_gib"}, and on a GPU "gpu_memory_gib": of this process, its peaks so far.

    Of a GPU it is what torch had in tensors, without its cache and the driver's own.
    """
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    found = {"host_memory_gib": round(resident / _GIB, 4)}
    if device.type == "cuda":
        taken = torch.cuda.max_memory_allocated(device)
        found["gpu_memory_gib"] = round(taken / _GIB, 4)
    return found
