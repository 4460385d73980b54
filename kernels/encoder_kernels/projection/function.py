"""project: query, key and value of one input as one product, by torch's own.

The maps stay parameters of their own. Where they lie together in memory, as optimizers that update
one flat tensor lay them, the product reads them there; elsewhere they are copied together in each
pass, which for N maps of D x D costs 4 N D^2 bytes in 16 bits. Against N products that saves
reading x N - 1 times (2 T D bytes each), and in the backward pass N - 1 sums of dx (6 T D each):
for three maps it pays from about T = 1.5 D on.

T tokens, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_kernels.first_order import first_order


def project(
    x_TD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return x W^T + b of every map, views of one tensor. Raises ValueError for odd shapes."""
    width = x_TD.shape[-1]
    if x_TD.dim() != 2 or any(
        weight.shape != (*bias.shape, width) for weight, bias in zip(weights, biases, strict=True)
    ):
        shapes = [tuple(tensor.shape) for tensor in (*weights, *biases)]
        raise ValueError(
            f"x {tuple(x_TD.shape)}, maps {shapes}: must be [T, D], then weights [N, D] and "
            f"biases [N]"
        )
    return _Joint.apply(x_TD, len(weights), *weights, *biases)


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, maps: int, *parameters: Tensor):
        weights, biases = parameters[:maps], parameters[maps:]
        y = torch.addmm(joined(biases), x_TD, joined(weights).t())
        ctx.save_for_backward(x_TD, *weights)
        return y.split([len(weight) for weight in weights], dim=1)

    @staticmethod
    @first_order
    def backward(ctx, *grads: Tensor):
        x_TD, *weights = ctx.saved_tensors
        grad, sizes = side_by_side(grads), [len(weight) for weight in weights]
        wants = ctx.needs_input_grad
        grad_x = grad @ joined(weights) if wants[0] else None
        nothing = (None,) * len(weights)
        wants_weights, wants_biases = any(wants[2 : 2 + len(sizes)]), any(wants[2 + len(sizes) :])
        of_weights = (grad.t() @ x_TD).split(sizes) if wants_weights else nothing
        of_biases = grad.sum(0).split(sizes) if wants_biases else nothing
        return grad_x, None, *of_weights, *of_biases


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors end to end: where they lie so already, without a copy."""
    first, *others = tensors
    at = first.data_ptr()
    for before, tensor in zip(tensors, others, strict=False):
        at += before.numel() * before.element_size()
        if tensor.data_ptr() != at or not _alike(before, tensor):
            return torch.cat(tensors)
    if not all(tensor.is_contiguous() for tensor in tensors):
        return torch.cat(tensors)
    rows = sum(len(tensor) for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """Return matrices of equal rows next to each other: where they stand so, without a copy."""
    first, *others = tensors
    columns = sum(tensor.shape[1] for tensor in tensors)
    at, row = first.data_ptr(), first.stride(0)
    for before, tensor in zip(tensors, others, strict=False):
        at += before.shape[1] * before.element_size()
        if tensor.data_ptr() != at or tensor.stride() != (row, 1) or not _alike(before, tensor):
            return torch.cat(tensors, dim=1)
    if first.stride(1) != 1 or row < columns:
        return torch.cat(tensors, dim=1)
    return first.as_strided((len(first), columns), (row, 1))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are of one type and in one piece of memory."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in (one, other)}
    return one.dtype == other.dtype and len(storages) == 1
