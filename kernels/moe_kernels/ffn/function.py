"""The public expert_ffn: checks its arguments once and picks the implementation.

R rows, T tokens, D hidden size, F inner size, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_kernels.ffn.reference import ACTIVATIONS, expert_ffn_reference
from moe_kernels.implementation import resolve_impl


def expert_ffn(
    x_RD: Tensor,
    counts_E: Tensor | Sequence[int],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
    activation: str = "gelu",
    *,
    impl: str = "auto",
) -> Tensor:
    """Return y_RD: rows sorted by expert, each through its expert's FFN.

    counts_E: rows of each expert, in order; their sum is R.
    w1, b1, w2, b2: E tensors each, in nn.Linear's layout ([F, D], [F], [D, F], [D]).
    activation: "gelu" (exact) or "gelu_tanh".
    An expert without rows gets zero gradients, never None.
    """
    check_experts(x_RD, w1, b1, w2, b2, activation)
    resolve_impl(impl, x_RD.device)
    counts = counts_E.tolist() if isinstance(counts_E, Tensor) else list(counts_E)
    if len(counts) != len(w1):
        raise ValueError(f"counts_E has {len(counts)} entries: must be the {len(w1)} experts")
    if sum(counts) != x_RD.shape[0]:
        raise ValueError(f"counts_E sums to {sum(counts)}: must be x_RD's {x_RD.shape[0]} rows")
    return expert_ffn_reference(x_RD, counts, w1, b1, w2, b2, activation)


def check_experts(x, w1, b1, w2, b2, activation: str) -> None:
    """Raise ValueError if the experts' tensors do not fit x and each other."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
    if not len(w1) == len(b1) == len(w2) == len(b2) > 0:
        lengths = f"{len(w1)}, {len(b1)}, {len(w2)}, {len(b2)}"
        raise ValueError(f"w1, b1, w2, b2 have {lengths} tensors: must be one an expert each")
    hidden, inner = x.shape[-1], w1[0].shape[0]
    shapes = {"w1": (inner, hidden), "b1": (inner,), "w2": (hidden, inner), "b2": (hidden,)}
    autocast = torch.is_autocast_enabled(x.device.type)
    for name, tensors in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        for i, tensor in enumerate(tensors):
            if tuple(tensor.shape) != shapes[name]:
                found = f"{name}[{i}] has shape {tuple(tensor.shape)}"
                raise ValueError(f"{found}: must be {shapes[name]}")
            if tensor.dtype != x.dtype and not autocast:
                raise ValueError(f"{name}[{i}] is {tensor.dtype}: must be x's {x.dtype}")
