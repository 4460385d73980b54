"""The update in plain PyTorch, one rounding to an operator: what the kernels compute, bit for bit.

torch's own fused Adam differs from it in the last bits, where it joins a product and a sum to one
rounding. G groups.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from update_kernels.types import AdamOptions, Outcome, Partition

CLIP_EPS = 1e-6
"""Added to the norm before it is compared with the bound, as DeepSpeed does."""


def adam_update_reference(
    gradients_G: Sequence[Sequence[Tensor]],
    partitions_G: Sequence[Partition],
    options_G: Sequence[AdamOptions],
    scale: float,
    bound: float,
    reduce: Callable[[Tensor], None] | None,
) -> Outcome:
    """Return what came of the update of every partition; arguments as in `adam_update`."""
    device = partitions_G[0].weights.device
    squares = [g.double().square().sum() for gradients in gradients_G for g in gradients]
    total = torch.stack([torch.zeros((), dtype=torch.float64, device=device), *squares]).sum()
    total = total.reshape(1)
    if reduce is not None:
        reduce(total)
    norm = total.sqrt()[0].float()
    finite = torch.isfinite(norm)
    norm = norm / torch.full_like(norm, scale)
    norm = norm.where(finite, torch.full_like(norm, math.inf))
    if finite:
        factor = clip_factor(norm, scale, bound)
        for gradients, partition, options in zip(gradients_G, partitions_G, options_G, strict=True):
            flat = [partition.weights.new_empty(0), *(g.reshape(-1).float() for g in gradients)]
            update_partition(torch.cat(flat), partition, options, factor)
    return Outcome(norm, finite)


def clip_factor(norm: Tensor, scale: float, bound: float) -> Tensor:
    """Return what gradients are multiplied by: clipping to `bound` (0: none) over the scale."""
    # By tensors: a GPU multiplies by the reciprocal of a number, which rounds twice.
    one = torch.ones_like(norm)
    if not bound:
        return one / torch.full_like(norm, scale)
    clip = ((norm + CLIP_EPS) / torch.full_like(norm, bound)).clamp(min=1.0)
    return one / (clip * scale)


def update_partition(
    gradient: Tensor, partition: Partition, options: AdamOptions, factor: Tensor
) -> None:
    """Update one partition in place by its flat gradient, float32, times `factor`."""
    weights, average, square = partition.weights, partition.exp_avg, partition.exp_avg_sq
    partition.step.add_(1)
    step_size, root = step_size_and_root(partition.step, options)
    gradient = gradient * factor
    new = weights
    if options.weight_decay:
        if options.decoupled:
            new = weights * (1 - options.lr * options.weight_decay)
        else:
            gradient = gradient + weights * options.weight_decay
    # Of the gradient in the average: from the nearer end, as torch's lerp.
    weight = torch.tensor(1 - options.beta1, dtype=torch.float32).item()
    base, weight = (average, weight) if weight < 0.5 else (gradient, weight - 1)
    average.copy_(base + (gradient - average) * weight)
    square.copy_(square * options.beta2 + gradient * (1 - options.beta2) * gradient)
    # By float64: torch's float32 roots on a CPU are a unit off for a sixth of all numbers.
    denominator = square.double().sqrt().float() / root + options.eps
    weights.copy_(new + average * -step_size / denominator)
    partition.stored.copy_(weights)


def step_size_and_root(step: Tensor, options: AdamOptions) -> tuple[Tensor, Tensor]:
    """Return (the rate over the first moment's bias, the root of the second's) after `step` steps,
    float32 scalars computed in float64."""
    first = 1 - power(options.beta1, step)
    second = 1 - power(options.beta2, step)
    return (options.lr / first).float(), second.sqrt().float()


def power(base: float, step: Tensor) -> Tensor:
    """Return base ** step in float64, for whole steps below 2 ** 24, by squaring.

    Not by a library's pow, whose last bits depend on the library.
    """
    left = step.to(torch.int32)
    result = torch.ones_like(step, dtype=torch.float64)
    square = torch.full_like(result, base)
    for _ in range(24):
        result = torch.where(left % 2 == 1, result * square, result)
        square, left = square * square, left // 2
    return result
