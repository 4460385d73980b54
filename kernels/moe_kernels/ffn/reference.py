"""The experts' feed-forward networks as a loop over experts, in plain PyTorch.

R rows sorted by expert, D hidden size, F inner size, E experts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Our names and those of torch.nn.functional.gelu's `approximate`.
ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


def expert_ffn_reference(
    x_RD: Tensor,
    counts: Sequence[int],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
    activation: str = "gelu",
) -> Tensor:
    """Return y_RD: each expert's FFN on its block of rows.

    An expert without rows still runs, on none: its gradients are zeros, not None, so that every
    rank makes the same collective calls.
    """
    blocks = []
    for x_ND, w1_FD, b1_F, w2_DF, b2_D in zip(x_RD.split(counts), w1, b1, w2, b2, strict=True):
        inner_NF = F.gelu(F.linear(x_ND, w1_FD, b1_F), approximate=ACTIVATIONS[activation])
        blocks.append(F.linear(inner_NF, w2_DF, b2_D))
    return torch.cat(blocks)
