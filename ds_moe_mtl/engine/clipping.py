"""Router and model clipped apart: DeepSpeed has one bound for the norm of all gradients together.

The router's gradient is orders of magnitude smaller or larger than the model's, so one bound lets
the one scale the other (the slides of Ye, Zha and Ren: "pay attention to how you clip the
gradients"). DeepSpeed's own clipping is off in such a run (config.deepspeed).
"""

import math
from collections.abc import Iterable

import torch

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.models.task_level.task_router import ROUTER_GROUP, VECTORS_GROUP


def clip_apart(engine, config: RunConfig) -> float:
    """Scale both sides' gradients to their bounds, before engine.step at an accumulation boundary.

    Returns the norm of all gradients before clipping; where that is not finite nothing is scaled
    (the step is skipped then). A collective call under ZeRO.
    """
    zero = bool(engine.zero_optimization())
    sides = {True: _Side(config.router.clip), False: _Side(config.train.clip)}
    for number, group in enumerate(engine.optimizer.param_groups):
        side = sides[group.get("name") in (ROUTER_GROUP, VECTORS_GROUP)]
        if zero:
            side.add_partition(engine.optimizer, number)
        else:
            side.add(p.grad for p in group["params"] if p.grad is not None)
    scale = float(engine.optimizer.loss_scale) if zero else 1.0
    total = math.sqrt(sum(side.squared for side in sides.values())) / scale
    if math.isfinite(total):
        for side in sides.values():
            side.clip(scale)
    return total


class _Side:
    """Gradients that are clipped together."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.squared = 0.0
        self.gradients: list[torch.Tensor] = []

    def add(self, gradients: Iterable[torch.Tensor]) -> None:
        gradients = list(gradients)
        if gradients:
            self.squared += float(torch.nn.utils.get_total_norm(gradients)) ** 2
            self.gradients += gradients

    def add_partition(self, optimizer, number: int) -> None:
        """Add this rank's part of a ZeRO group; the norm is that of all parts."""
        gradients = optimizer.averaged_gradients[number]
        norm = float(
            optimizer.get_grad_norm_direct(gradients, optimizer.params_in_partition[number])
        )
        self.squared += norm**2 if norm >= 0 else math.inf  # DeepSpeed says -1 for not finite
        self.gradients += list(gradients)

    def clip(self, scale: float) -> None:
        norm = math.sqrt(self.squared) / scale
        if self.bound and norm > self.bound:
            for gradient in self.gradients:
                gradient.mul_(self.bound / (norm + 1e-6))
