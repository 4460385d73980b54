"""The experts' separate parameters as the kernels see them: one table of addresses.

DeepSpeed's checkpoints need every expert's tensors to be parameters of their own, so the kernels
get E addresses of each kind instead of one stacked tensor. The table is made from the addresses of
the moment: when ZeRO moves a parameter's storage, the next call makes another.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

# Bytes a vectorised load takes; tables whose entries are all multiples allow 16-byte loads.
VECTOR_BYTES = 16


def address_table(weights: Sequence[Tensor | None]) -> tuple[Tensor, int]:
    """Return (the addresses of contiguous tensors on one device, int64, in their order, and 16 if
    every row of every tensor starts at a multiple of 16 bytes, else 1). None has address 0.
    """
    given = [tensor for tensor in weights if tensor is not None]
    row_bytes = frozenset(tensor.shape[-1] * tensor.element_size() for tensor in given)
    addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in weights)
    return _table(addresses, row_bytes, given[0].device)


@lru_cache(maxsize=4096)
def _table(
    addresses: tuple[int, ...], row_bytes: frozenset[int], device: torch.device
) -> tuple[Tensor, int]:
    # A function of the addresses alone, so a remembered table cannot be stale. Copying it waits for
    # the device once; later calls do not, which CUDA graphs need (they are warmed up first).
    table = torch.tensor(addresses, dtype=torch.int64, device=device)
    aligned = all(number % VECTOR_BYTES == 0 for number in (*row_bytes, *addresses))
    return table, VECTOR_BYTES if aligned else 1
