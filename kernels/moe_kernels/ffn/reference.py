"""The experts' feed-forward networks as a loop over experts, in plain PyTorch.

R rows sorted by expert, D hidden size, F inner size, H rows of W1 (F or, gated, 2 F), E experts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_kernels.ffn.activation import activate


def expert_ffn_reference(
    x_RD: Tensor,
    counts: Sequence[int],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor] | None,
    w2: Sequence[Tensor],
    b2: Sequence[Tensor] | None,
    activation: str = "gelu",
) -> Tensor:
    """Return y_RD: each expert's FFN on its block of rows; b1, b2 None for FFNs without.

    An expert without rows still runs, on none: its gradients are zeros, not None, so that every
    rank makes the same collective calls.
    """
    missing = [None] * len(w1)
    experts = zip(x_RD.split(counts), w1, b1 or missing, w2, b2 or missing, strict=True)
    blocks = []
    for x_ND, w1_HD, b1_H, w2_DF, b2_D in experts:
        inner_NF = activate(F.linear(x_ND, w1_HD, b1_H), activation)
        blocks.append(F.linear(inner_NF, w2_DF, b2_D))
    return torch.cat(blocks)
