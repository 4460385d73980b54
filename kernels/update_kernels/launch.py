"""Launches of the update: one for the norm, one for the decision, one for each group.

The addresses of the gradients, which differ from step to step, and the groups' rates travel to the
device in one copy, for which the host does not wait. G groups.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from moe_kernels.block_sizes import MULTIPROCESSORS, cdiv, power_of_2
from moe_kernels.implementation import interpreting
from update_kernels import kernel
from update_kernels.types import AdamOptions, Outcome, Partition

BLOCK = 1024
"""Elements of a block: eight for each of 128 threads, 16 bytes of a gradient at once."""

NORM_PROGRAMS = 8 * MULTIPROCESSORS
VECTOR_BYTES, VECTOR = 16, 8
NO_FUSION = {"enable_fp_fusion": False}
"""Launch option: every product and every sum is rounded, as in the reference."""


class Blocks(NamedTuple):
    """The blocks of all groups [B, 4], int64, and where each group's begin (and the last ends)."""

    table: Tensor
    starts: tuple[int, ...]


def launch_update(
    gradients_G: Sequence[Sequence[Tensor]],
    partitions_G: Sequence[Partition],
    options_G: Sequence[AdamOptions],
    scale: float,
    bound: float,
    reduce: Callable[[Tensor], None] | None,
) -> Outcome:
    """Return what comes of the update of every partition; arguments as in `adam_update`."""
    import triton.language as tl

    device = partitions_G[0].weights.device
    flat = [g for gradients in gradients_G for g in gradients]
    element = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    constants = {"TYPE": element[partitions_G[0].stored.dtype], "BLOCK": BLOCK}
    sizes = tuple(tuple(g.numel() for g in gradients) for gradients in gradients_G)
    blocks = plan_blocks(sizes, device)
    starts = [g.data_ptr() for g in flat]
    align = VECTOR_BYTES if all(start % VECTOR_BYTES == 0 for start in starts) else 1
    gradients, steps, scalars = _to_device(starts, partitions_G, options_G, scale, bound)

    programs = max(1, min(NORM_PROGRAMS, len(blocks.table)))
    partial = torch.empty(programs, dtype=torch.float32, device=device)
    kernel.norm_kernel[(programs,)](
        gradients, blocks.table, partial, len(blocks.table),
        **constants, PROGRAMS=programs, ALIGN=align, num_warps=4, **NO_FUSION,
    )  # fmt: skip
    if reduce is not None:
        partial = partial.double().sum().reshape(1)
        reduce(partial)
    norm, finite, rows = _decide(partial, scalars, steps, len(partitions_G), bound)
    for g, (partition, options) in enumerate(zip(partitions_G, options_G, strict=True)):
        begin, end = blocks.starts[g : g + 2]
        if begin == end:
            continue
        kernel.update_kernel[(end - begin,)](
            gradients, blocks.table[begin:end], rows[g], finite,
            partition.weights, partition.exp_avg, partition.exp_avg_sq, partition.stored,
            **constants, DECAYS=options.weight_decay != 0, DECOUPLED=options.decoupled,
            BY_HAND=interpreting() and partition.stored.dtype == torch.bfloat16,
            ALIGN=align if _starts_in_vectors(partition, sizes[g]) else 1, num_warps=4, **NO_FUSION,
        )  # fmt: skip
    return Outcome(norm, finite.bool())


def _decide(partial, scalars, steps, groups: int, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (norm, finite, the rows of the groups) from the parts of the norm."""
    device = partial.device
    norm = torch.empty((), dtype=torch.float32, device=device)
    finite = torch.empty((), dtype=torch.int8, device=device)
    rows = torch.empty((groups, kernel.ROW.value), dtype=torch.float32, device=device)
    kernel.decide_kernel[(1,)](
        partial, len(partial), scalars, steps, rows, norm, finite,
        G=groups, G_PAD=power_of_2(groups), P=power_of_2(len(partial)), CLIPS=bound > 0,
        num_warps=4, **NO_FUSION,
    )  # fmt: skip
    return norm, finite, rows


def _to_device(
    starts: list[int],
    partitions_G: Sequence[Partition],
    options_G: Sequence[AdamOptions],
    scale: float,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the addresses of gradients and of steps, int64, and the scalars, float64: one copy."""
    device = partitions_G[0].weights.device
    addresses = starts + [partition.step.data_ptr() for partition in partitions_G]
    scalars = [scale, bound]
    for lr, beta1, beta2, eps, decay, decoupled in options_G:
        scalars += [lr, beta1, beta2, eps, 1 - lr * decay if decoupled else decay]
    whole = torch.cat(
        [
            torch.tensor(addresses, dtype=torch.int64),
            torch.tensor(scalars, dtype=torch.float64).view(torch.int64),
        ]
    )
    if device.type == "cuda":  # from memory that a copy may be read from while the host goes on
        whole = whole.pin_memory().to(device, non_blocking=True)
    gradients, steps, rest = whole.split([len(starts), len(partitions_G), len(scalars)])
    return gradients, steps, rest.view(torch.float64)


def _starts_in_vectors(partition: Partition, sizes: tuple[int, ...]) -> bool:
    """Return whether every gradient's weights start at a multiple of 16 bytes."""
    tensors = (partition.weights, partition.exp_avg, partition.exp_avg_sq, partition.stored)
    return all(size % VECTOR == 0 for size in sizes) and all(
        tensor.data_ptr() % VECTOR_BYTES == 0 for tensor in tensors
    )


@lru_cache(maxsize=16)
def plan_blocks(sizes_G: tuple[tuple[int, ...], ...], device: torch.device) -> Blocks:
    """Return the blocks over gradients of these sizes, which lie end to end in each group."""
    parts, starts, gradient = [torch.empty((0, 4), dtype=torch.int64)], [0], 0
    for sizes in sizes_G:
        place = 0
        for size in sizes:
            first = torch.arange(0, size, BLOCK)
            rows = [torch.full_like(first, gradient), first, place + first]
            parts.append(torch.stack([*rows, (size - first).clamp(max=BLOCK)], dim=1))
            gradient, place = gradient + 1, place + size
        starts.append(starts[-1] + sum(cdiv(size, BLOCK) for size in sizes))
    return Blocks(torch.cat(parts).to(device), tuple(starts))
