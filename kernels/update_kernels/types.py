"""What an update takes and gives.

G optimizer groups.
"""

from typing import NamedTuple

from torch import Tensor


class Partition(NamedTuple):
    """What is updated of one optimizer group, flat, as ZeRO keeps it: n weights.

    weights, exp_avg, exp_avg_sq: float32 [n]; step: float32 scalar, steps that were taken; stored
    [n]: the weights in the model's type, written from `weights`.
    """

    weights: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    stored: Tensor


class AdamOptions(NamedTuple):
    """Adam's options of one group. decoupled: weight decay is AdamW's, else added to gradients."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


class Outcome(NamedTuple):
    """What came of an update, on its device.

    norm: float32 scalar, of all gradients over the scale, before clipping; inf: one is not finite.
    finite: bool scalar, whether all gradients were; where not, nothing was written.
    """

    norm: Tensor
    finite: Tensor
