"""Results and gradients against float64: the error that the plain reference's own explains."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.kernels.layers import KERNEL_DEVICE, rms_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Return random numbers that the type can hold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, dtype=None, device=None
) -> list[Tensor]:
    """Return the function's result and the gradients of all inputs, in a type, on a device."""
    leaves = [x.detach().to(device, dtype, copy=True).requires_grad_() for x in inputs]
    y = function(*leaves)
    grads = torch.autograd.grad(y, leaves, grad.to(y.device, y.dtype))
    return [y.detach(), *grads]


def assert_as_exact_as_the_reference(
    names: Sequence[str], kernel: Callable, reference: Callable, inputs: Sequence[Tensor],
    grad: Tensor, intermediate_stores: int = 0,
) -> None:  # fmt: skip
    """Assert that root mean square errors are at most twice the reference's in the same type.

    Added to that is what the store loses: one unit in the last place of the largest value, and one
    for each intermediate store where they truncate (bfloat16 in Triton's interpreter).
    """
    dtype = inputs[0].dtype
    exact = differentiated(reference, inputs, grad, torch.float64)
    plain = differentiated(reference, inputs, grad)
    found = differentiated(kernel, inputs, grad, device=KERNEL_DEVICE)
    truncates = KERNEL_DEVICE == "cpu" and dtype == torch.bfloat16
    stores = 1 + intermediate_stores * truncates
    for name, true, theirs, ours in zip(names, exact, plain, found, strict=True):
        assert ours.dtype == dtype and ours.shape == true.shape, name
        largest = true.abs().max().item() if true.numel() else 0
        allowed = 2 * rms_error([true], [theirs]) + stores * torch.finfo(dtype).eps * largest
        error = rms_error([true], [ours])
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
