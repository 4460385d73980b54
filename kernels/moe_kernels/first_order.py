"""Backward passes that have no backward pass of their own, and say so.

torch's `once_differentiable` is silent where the gradient that comes in is a constant, as that of
`y.sum()` is: with create_graph=True a second derivative then lacks all that passes through here.
"""

import functools
from collections.abc import Callable

import torch


def first_order(backward: Callable) -> Callable:
    """Return an autograd Function's backward whose results cannot be differentiated again.

    Under create_graph=True they require a gradient, and asking for it raises RuntimeError.
    """

    @functools.wraps(backward)
    def checked(ctx, *grads):
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        if isinstance(results, torch.Tensor):
            return _last(results)
        return tuple(None if result is None else _last(result) for result in results)

    return checked


def _last(gradient: torch.Tensor) -> torch.Tensor:
    return _NoSecond.apply(gradient.detach().requires_grad_())


class _NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "these kernels have first derivatives only; allowed: no create_graph=True, or one "
            "whose gradients are not differentiated"
        )
