"""Adapters: small residual bottlenecks after attention and after the FFN of every layer.

Sizes: public code CrossTaskMoE (width 8, two an encoder layer).
"""

import torch
from torch import nn

from ds_moe_mtl.models.families import ffn_layers

WIDTH = 8


class Adapter(nn.Module):
    """x + up(gelu(down(x))); the identity at its start, since `up` starts with zeros."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, WIDTH)
        self.up = nn.Linear(WIDTH, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(nn.functional.gelu(self.down(x)))


def add_adapters(transformer: nn.Module) -> list[nn.Parameter]:
    """Put adapters into an encoder, in place, and return their parameters in order.

    They stand before the residual sum, after the output projections of attention and FFN.
    """
    size = transformer.config.hidden_size
    parameters = []
    family, layers = ffn_layers(transformer)
    for layer in layers:
        for holder, name in family.before_residuals(layer):
            adapter = Adapter(size)
            setattr(holder, name, nn.Sequential(getattr(holder, name), adapter))
            parameters += adapter.parameters()
    return parameters
