"""What every network of many tasks gives back.

B sequences, C outputs of the widest task.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ds_moe_mtl.models.token_level.context import LayerRoute


class Outputs(NamedTuple):
    """logits_BC float32 (-inf beyond a task's own outputs), the auxiliary loss, and layer records.

    counts: tokens an expert [E] a sparse layer; routes: filled where asked for. losses_B: where
    the network itself computes each sequence's loss (answers that are generated). A tuple: in it
    DeepSpeed's engine finds the tensors at which the backward pass begins (its timers, its state).
    """

    logits_BC: torch.Tensor
    aux_loss: torch.Tensor
    counts: Sequence[torch.Tensor] = ()
    routes: Sequence[LayerRoute] = ()
    losses_B: torch.Tensor | None = None
