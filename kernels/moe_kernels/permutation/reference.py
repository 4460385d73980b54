"""Gather and scatter of rows in plain PyTorch. The indices never repeat, so no row is added to.

T tokens, R rows in expert order, D hidden size; order lists the R routed tokens first.
"""

import torch
from torch import Tensor


def gather_rows(
    x_TD: Tensor,
    order: Tensor,
    num_rows: int,
    scale_T: Tensor | None = None,
    other_RD: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (scale x in expert order, <x, other> a token if other is given: 0 if not routed)."""
    order_R = order[:num_rows]
    y_RD, dots_T = x_TD.index_select(0, order_R), None
    if other_RD is not None:
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        dots_T = x_TD.new_zeros(x_TD.shape[0], dtype=wide)
        dots_T[order_R] = (y_RD * other_RD).sum(1, dtype=wide)
    if scale_T is not None:
        y_RD.mul_(scale_T[order_R].to(y_RD.dtype).unsqueeze(1))
    return y_RD, dots_T


def scatter_rows(
    y_RD: Tensor, order: Tensor, num_tokens: int, scale_T: Tensor | None = None
) -> Tensor:
    """Return x_TD: scale y back in token order, and zeros in the rows that are not routed."""
    order_R = order[: y_RD.shape[0]].long()
    if scale_T is not None:
        y_RD = y_RD * scale_T[order_R].to(y_RD.dtype).unsqueeze(1)
    full = order_R.shape[0] == num_tokens
    shape = (num_tokens, y_RD.shape[1])
    return (y_RD.new_empty if full else y_RD.new_zeros)(shape).index_copy_(0, order_R, y_RD)
