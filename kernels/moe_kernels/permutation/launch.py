"""Launches of the Triton row-moving kernels: one each.

T tokens, R rows in expert order, D hidden size. order_T lists all T tokens, the R routed first.
"""

import torch
from torch import Tensor

from moe_kernels.block_sizes import cdiv, power_of_2
from moe_kernels.permutation import kernel

# 16 rows of up to 512 columns a step: 16 KiB in 16 bit, enough loads in flight for one program.
BLOCK_R = 16


def launch_gather(
    x_TD: Tensor,
    order_T: Tensor,
    num_rows: int,
    scale_T: Tensor | None = None,
    other_RD: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (scale x in expert order, <x, other> a token if other is given: 0 if not routed)."""
    y_RD = x_TD.new_empty(num_rows, x_TD.shape[1])
    dots_T = None
    if other_RD is not None:
        dots_T = x_TD.new_zeros(x_TD.shape[0], dtype=torch.float32)
    with torch.cuda.device_of(x_TD):
        kernel.gather_kernel[(cdiv(num_rows, BLOCK_R),)](
            x_TD, order_T, x_TD if scale_T is None else scale_T, y_RD,
            x_TD if other_RD is None else other_RD, x_TD if dots_T is None else dots_T, num_rows,
            D=x_TD.shape[1], HAS_SCALE=scale_T is not None, HAS_DOTS=other_RD is not None,
            BLOCK_R=BLOCK_R, BLOCK_D=_columns(x_TD),
        )  # fmt: skip
    return y_RD, dots_T


def launch_scatter(y_RD: Tensor, order_T: Tensor, scale_T: Tensor | None = None) -> Tensor:
    """Return x_TD: scale y back in token order, and zeros in the rows that are not routed."""
    num_tokens = order_T.shape[0]
    x_TD = y_RD.new_empty(num_tokens, y_RD.shape[1])
    with torch.cuda.device_of(y_RD):
        kernel.scatter_kernel[(cdiv(num_tokens, BLOCK_R),)](
            y_RD, order_T, y_RD if scale_T is None else scale_T, x_TD, y_RD.shape[0], num_tokens,
            D=y_RD.shape[1], HAS_SCALE=scale_T is not None, BLOCK_R=BLOCK_R,
            BLOCK_D=_columns(y_RD),
        )  # fmt: skip
    return x_TD


def _columns(x: Tensor) -> int:
    return min(512, power_of_2(x.shape[1]))
