"""Gather and scatter of rows in plain PyTorch. The indices never repeat, so no row is added to."""

import torch
from torch import Tensor


def gather_rows(x_TD: Tensor, order_R: Tensor) -> Tensor:
    """Return x_RD: row order_R[r] of x_TD as row r."""
    return x_TD.index_select(0, order_R)


def scatter_rows(y_RD: Tensor, order_R: Tensor, num_rows: int) -> Tensor:
    """Return y_TD with row r of y_RD as row order_R[r], and zeros in the rows not named."""
    full = order_R.shape[0] == num_rows
    y_TD = (torch.empty if full else torch.zeros)(
        (num_rows, y_RD.shape[1]), dtype=y_RD.dtype, device=y_RD.device
    )
    return y_TD.index_copy_(0, order_R, y_RD)
