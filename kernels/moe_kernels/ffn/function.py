"""The public expert_ffn: checks its arguments once and picks the implementation.

R rows, T tokens, D hidden size, F inner size, H rows of W1 (F or, gated, 2 F), E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_kernels.ffn.activation import ACTIVATIONS
from moe_kernels.ffn.blocks import ffn_by_block
from moe_kernels.ffn.choice import choose_ffn
from moe_kernels.implementation import check_kernel_dtype, contiguous
from moe_kernels.opaque import opaque


@opaque
def expert_ffn(
    x_RD: Tensor,
    counts_E: Tensor | Sequence[int],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor] | None,
    w2: Sequence[Tensor],
    b2: Sequence[Tensor] | None,
    activation: str = "gelu",
    *,
    order_R: Tensor | None = None,
    scale_T: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return y_RD: each row through its expert's FFN.

    counts_E: rows of each expert. Without order_R the rows are sorted by expert and counts_E sums
    to R. With order_R (Routing.order_R, or received_order's) they lie in any order and order_R
    lists them expert by expert: the result keeps the rows' own order, with 0 in rows not listed.
    w1, b1, w2, b2: E tensors each, in nn.Linear's layout ([H, D], [H], [D, F], [D]); b1, b2 None
    for FFNs without that bias.
    activation: "gelu" (exact) or "gelu_tanh", H = F; gated "geglu", "geglu_tanh" or "swiglu",
    H = 2 F, rows 0 to F - 1 of w1 for the half that is activated (ffn.activation).
    scale_T: what each row's result is multiplied by, float32, in the rows' own order.
    An expert without rows gets zero gradients, never None. Under autocast x and the experts are
    cast as torch's linear would. Raises ValueError for arguments that do not fit.
    """
    check_experts(x_RD, w1, b1, w2, b2, activation)
    weights = flat_weights(w1, b1, w2, b2)
    if torch.is_autocast_enabled(x_RD.device.type):
        dtype = torch.get_autocast_dtype(x_RD.device.type)
        x_RD = x_RD.to(dtype)
        weights = tuple(None if tensor is None else tensor.to(dtype) for tensor in weights)
    if len(counts_E) != len(w1):
        raise ValueError(f"counts_E has {len(counts_E)} entries: must be the {len(w1)} experts")
    with torch.autocast(x_RD.device.type, enabled=False):
        if choose_ffn(impl, x_RD.device, activation, has_biases(b1, b2)).impl != "torch":
            return _ffn_on_gpu(x_RD, counts_E, weights, activation, order_R, scale_T)
        counts = counts_E.tolist() if isinstance(counts_E, Tensor) else list(counts_E)
        listed = x_RD.shape[0] if order_R is None else order_R.shape[0]
        if sum(counts) != listed and x_RD.device.type == "cpu":
            rows = "x_RD's rows" if order_R is None else "order_R's entries"
            raise ValueError(f"counts_E sums to {sum(counts)}: must be {rows}, {listed}")
        return ffn_by_block(x_RD, counts, weights, activation, order_R, scale_T)


def _ffn_on_gpu(x_RD, counts_E, weights, activation, order_R, scale_T) -> Tensor:
    from moe_kernels.ffn.launch import TritonFFN

    check_kernel_dtype("x_RD", x_RD)
    if not isinstance(counts_E, Tensor):
        counts_E = torch.tensor(list(counts_E))
    counts = counts_E.to(device=x_RD.device, dtype=torch.int32, non_blocking=True)
    y_RD = TritonFFN.apply(
        x_RD.contiguous(),
        contiguous(order_R),
        counts.contiguous(),
        activation,
        *map(contiguous, weights),
    )
    return y_RD if scale_T is None else y_RD * scale_T.to(y_RD.dtype).unsqueeze(1)


def flat_weights(w1, b1, w2, b2) -> tuple[Tensor | None, ...]:
    """Return w1, b1, w2 and b2 one after the other, E entries each: None for a missing bias."""
    missing = (None,) * len(w1)
    return (*w1, *(missing if b1 is None else b1), *w2, *(missing if b2 is None else b2))


def has_biases(b1, b2) -> bool:
    """Return whether the experts have both biases."""
    return b1 is not None and b2 is not None


def check_experts(x, w1, b1, w2, b2, activation: str) -> None:
    """Raise ValueError if the experts' tensors do not fit x, each other and the activation."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
    given = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    given = {name: tensors for name, tensors in given.items() if tensors is not None}
    if len({len(tensors) for tensors in given.values()}) != 1 or not w1:
        lengths = ", ".join(str(len(tensors)) for tensors in given.values())
        raise ValueError(f"{', '.join(given)} have {lengths} tensors: must be one an expert each")
    hidden, rows, inner = x.shape[-1], w1[0].shape[0], w2[0].shape[-1]
    halves = ACTIVATIONS[activation].halves
    if rows != halves * inner and tuple(w2[0].shape) == (hidden, inner):
        raise ValueError(
            f"w1[0] has {rows} rows: must be {halves} x w2[0]'s {inner} columns for "
            f"activation={activation!r}"
        )
    inner = rows // halves
    shapes = {"w1": (rows, hidden), "b1": (rows,), "w2": (hidden, inner), "b2": (hidden,)}
    autocast = torch.is_autocast_enabled(x.device.type)
    for name, tensors in given.items():
        for i, tensor in enumerate(tensors):
            if tuple(tensor.shape) != shapes[name]:
                found = f"{name}[{i}] has shape {tuple(tensor.shape)}"
                raise ValueError(f"{found}: must be {shapes[name]}")
            if tensor.dtype != x.dtype and not autocast:
                raise ValueError(f"{name}[{i}] is {tensor.dtype}: must be x's {x.dtype}")
