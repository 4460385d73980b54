"""Routers over task vectors: linear, MLP, LSTM over layers, Transformer over layers.

K tasks, V numbers a task vector, L routed layers, H hidden size, E experts. All map [K, V] to
[K, L, E]. Sizes: public code CrossTaskMoE (its "layer_specific" forms); no dropout, our choice: a
router's noise is the selection's.
"""

import torch
from torch import nn

HEADS = 4  # CrossTaskMoE
FEED_FORWARD = 64  # CrossTaskMoE


class LinearRouter(nn.Module):
    """A linear map a layer."""

    def __init__(self, size: int, layers: int, experts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, experts) for _ in range(layers))

    def forward(self, vectors_KV: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(vectors_KV) for layer in self.layers], dim=1)


class MlpRouter(nn.Module):
    """An MLP a layer: V -> H -> E with GELU."""

    def __init__(self, size: int, hidden: int, layers: int, experts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, experts))
            for _ in range(layers)
        )

    def forward(self, vectors_KV: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(vectors_KV) for layer in self.layers], dim=1)


class LstmRouter(nn.Module):
    """A bidirectional LSTM over the layers, each of which has its own map of the task vector."""

    def __init__(self, size: int, hidden: int, layers: int, experts: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(size, hidden) for _ in range(layers))
        self.down = nn.LSTMCell(hidden, hidden)
        self.up = nn.LSTMCell(hidden, hidden)
        self.out = nn.Linear(2 * hidden, experts)

    def forward(self, vectors_KV: torch.Tensor) -> torch.Tensor:
        inputs = [layer(vectors_KV) for layer in self.inputs]
        down = _run(self.down, inputs)
        up = _run(self.up, inputs[::-1])[::-1]
        return self.out(torch.cat([torch.stack(down, dim=1), torch.stack(up, dim=1)], dim=-1))


class TransformerRouter(nn.Module):
    """A Transformer layer over the layers, each of which has its own map of the task vector."""

    def __init__(self, size: int, hidden: int, layers: int, experts: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(size, hidden) for _ in range(layers))
        self.mixer = nn.TransformerEncoderLayer(
            hidden, HEADS, FEED_FORWARD, dropout=0.0, batch_first=True
        )
        self.out = nn.Linear(hidden, experts)

    def forward(self, vectors_KV: torch.Tensor) -> torch.Tensor:
        return self.out(self.mixer(torch.stack([i(vectors_KV) for i in self.inputs], dim=1)))


def new_router_net(name: str, size: int, hidden: int, layers: int, experts: int) -> nn.Module:
    """Return the router of that name for task vectors of `size` numbers."""
    if name == "linear":
        return LinearRouter(size, layers, experts)
    nets = {"mlp": MlpRouter, "lstm": LstmRouter, "transformer": TransformerRouter}
    if name not in nets:
        raise ValueError(f"router.net = {name!r}; allowed: linear, {', '.join(nets)}")
    return nets[name](size, hidden, layers, experts)


def _run(cell: nn.LSTMCell, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    state, outputs = None, []
    for x in inputs:
        state = cell(x, state)
        outputs.append(state[0])
    return outputs
