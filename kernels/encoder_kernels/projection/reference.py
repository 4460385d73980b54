"""Linear maps of one input, one by one."""

from collections.abc import Sequence

from torch import Tensor, nn


def project_reference(
    x_TD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return x W^T + b of every map."""
    maps = zip(weights, biases, strict=True)
    return tuple(nn.functional.linear(x_TD, weight, bias) for weight, bias in maps)
