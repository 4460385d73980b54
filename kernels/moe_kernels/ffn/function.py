"""The public expert_ffn: checks its arguments once and picks the implementation.

R rows, T tokens, D hidden size, F inner size, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_kernels.ffn.blocks import ffn_by_block
from moe_kernels.ffn.reference import ACTIVATIONS
from moe_kernels.implementation import check_kernel_dtype, contiguous, resolve_impl
from moe_kernels.opaque import opaque


@opaque
def expert_ffn(
    x_RD: Tensor,
    counts_E: Tensor | Sequence[int],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
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
    w1, b1, w2, b2: E tensors each, in nn.Linear's layout ([F, D], [F], [D, F], [D]).
    activation: "gelu" (exact) or "gelu_tanh".
    scale_T: what each row's result is multiplied by, float32, in the rows' own order.
    An expert without rows gets zero gradients, never None. Under autocast x and the experts are
    cast as torch's linear would. Raises ValueError for arguments that do not fit.
    """
    check_experts(x_RD, w1, b1, w2, b2, activation)
    if torch.is_autocast_enabled(x_RD.device.type):
        dtype = torch.get_autocast_dtype(x_RD.device.type)
        x_RD = x_RD.to(dtype)
        w1, b1, w2, b2 = ([tensor.to(dtype) for tensor in kind] for kind in (w1, b1, w2, b2))
    if len(counts_E) != len(w1):
        raise ValueError(f"counts_E has {len(counts_E)} entries: must be the {len(w1)} experts")
    with torch.autocast(x_RD.device.type, enabled=False):
        if resolve_impl(impl, x_RD.device) != "torch":
            return _ffn_on_gpu(x_RD, counts_E, (*w1, *b1, *w2, *b2), activation, order_R, scale_T)
        counts = counts_E.tolist() if isinstance(counts_E, Tensor) else list(counts_E)
        listed = x_RD.shape[0] if order_R is None else order_R.shape[0]
        if sum(counts) != listed and x_RD.device.type == "cpu":
            rows = "x_RD's rows" if order_R is None else "order_R's entries"
            raise ValueError(f"counts_E sums to {sum(counts)}: must be {rows}, {listed}")
        return ffn_by_block(x_RD, counts, w1, b1, w2, b2, activation, order_R, scale_T)


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
        activation == "gelu_tanh",
        *(weight.contiguous() for weight in weights),
    )
    return y_RD if scale_T is None else y_RD * scale_T.to(y_RD.dtype).unsqueeze(1)


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
