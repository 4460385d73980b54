"""A pull of every layer's experts towards their mean, decoupled from the gradient.

As AdamW decays weights: after the update, by its own weight and not through Adam's moments. The
mean of a layer's experts stays where it is. E experts.
"""

from collections.abc import Iterator

import torch

from ds_moe_mtl.engine.partitions import add_to_weights
from ds_moe_mtl.moe import TaskMoE


def pull_experts(engine, weight: float) -> None:
    """Move each expert's tensors by `weight` of the way to their mean; a collective call.

    With ep_size 1. In 16 bits the difference to the mean is that of the module's rounded weights.
    """
    add_to_weights(engine, _changes(engine.module, weight))


@torch.no_grad()
def _changes(
    module: torch.nn.Module, weight: float
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    for layer in module.modules():
        if not isinstance(layer, TaskMoE):
            continue
        experts = layer.deepspeed_moe.experts.deepspeed_experts
        for copies in zip(*(expert.parameters() for expert in experts), strict=True):
            values = torch.stack([copy.float() for copy in copies])
            yield from zip(copies, weight * (values.mean(0) - values), strict=True)
