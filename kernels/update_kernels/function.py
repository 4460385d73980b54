"""The update of all optimizer groups of a step: norm, decision, Adam. G groups."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_kernels.implementation import resolve_impl
from update_kernels.reference import adam_update_reference
from update_kernels.types import AdamOptions, Outcome, Partition


@torch.no_grad()
def adam_update(
    gradients_G: Sequence[Sequence[Tensor]],
    partitions_G: Sequence[Partition],
    options_G: Sequence[AdamOptions],
    *,
    scale: float = 1.0,
    bound: float = 0.0,
    reduce: Callable[[Tensor], None] | None = None,
    impl: str = "auto",
) -> Outcome:
    """Update every partition in place by Adam, or none where a gradient is not finite.

    gradients_G: of each group, tensors of the type of `stored` that end to end have as many
    elements as the partition. scale: what the loss was multiplied by; bound: the largest norm of
    all gradients together, 0 for none. reduce: adds up a float64 tensor [1] over the ranks, in
    place; None: this rank has all gradients. impl: auto | torch | triton; Triton's host waits for
    nothing. Steps are whole and below 2 ** 24. Raises ValueError for tensors that do not fit.
    """
    _check(gradients_G, partitions_G, options_G)
    # Kept until the launches are made: copies of those that do not lie in one piece.
    gradients_G = [[g.contiguous() for g in gradients] for gradients in gradients_G]
    arguments = (gradients_G, partitions_G, options_G, scale, bound, reduce)
    if resolve_impl(impl, partitions_G[0].weights.device) == "torch":
        return adam_update_reference(*arguments)
    from update_kernels.launch import launch_update

    return launch_update(*arguments)


def _check(gradients_G, partitions_G, options_G) -> None:
    """Raise ValueError for what a kernel would read or write beside its memory."""
    if not len(gradients_G) == len(partitions_G) == len(options_G) > 0:
        raise ValueError(
            f"{len(gradients_G)} groups of gradients, {len(partitions_G)} partitions, "
            f"{len(options_G)} options: must be as many, and one at least"
        )
    dtype, device = partitions_G[0].stored.dtype, partitions_G[0].weights.device
    for number, (gradients, partition) in enumerate(zip(gradients_G, partitions_G, strict=True)):
        of_group = f"group {number}"
        size = sum(g.numel() for g in gradients)
        for name, tensor in partition._asdict().items():
            wanted = dtype if name == "stored" else torch.float32
            elements = 1 if name == "step" else size
            if tensor.dtype != wanted or tensor.numel() != elements or not tensor.is_contiguous():
                raise ValueError(
                    f"{of_group}: {name} is {tensor.dtype} {list(tensor.shape)}; "
                    f"must be {wanted} of {elements} elements in one piece"
                )
        for tensor in (*gradients, *partition):
            if tensor.device != device:
                raise ValueError(f"{of_group}: a tensor on {tensor.device}, others on {device}")
        if any(g.dtype != dtype for g in gradients):
            raise ValueError(f"{of_group}: gradients must be {dtype}, as the weights")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"stored is {dtype}: must be float32, float16 or bfloat16")
