"""Experts: the dense FFN as a module, and a pass of sorted rows through a list of experts.

R routed rows sorted by expert, D hidden size, F intermediate size, E experts.
"""

from collections.abc import Sequence

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.models.dropout import dropout

_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
"""Activation names of moe_kernels, with torch's `approximate` argument."""

_FROM_TRANSFORMERS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def activation_of(hidden_act: str) -> str:
    """Return our name for a transformers `hidden_act`. Raises ValueError for one not carried."""
    if hidden_act not in _FROM_TRANSFORMERS:
        raise ValueError(
            f"hidden_act {hidden_act!r} is not supported; allowed: {sorted(_FROM_TRANSFORMERS)}"
        )
    return _FROM_TRANSFORMERS[hidden_act]


class FeedForward(nn.Module):
    """A BERT FFN: fc2(gelu(fc1(x))), both with bias; in training `dropout` between the two."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in _APPROXIMATE:
            raise ValueError(f"activation is one of {sorted(_APPROXIMATE)}, got {activation!r}")
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = gelu(self.fc1(x), self.activation)
        return self.fc2(dropout(h, self.dropout, self.training))


def gelu(h: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the activation of that name, "gelu" or "gelu_tanh", of h."""
    return nn.functional.gelu(h, approximate=_APPROXIMATE[activation])


FFNWeights = tuple[
    list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], str
]


def ffn_weights(experts: Sequence[nn.Module]) -> FFNWeights | None:
    """Return (w1, b1, w2, b2, activation) when the experts are biased two-layer GELU FFNs.

    FeedForward and nn.Sequential(Linear, GELU, Linear) are; None for any other module, and while
    they drop activations.
    """
    parts = [_linear_pair(expert) for expert in experts]
    if any(part is None for part in parts) or len({part[2] for part in parts}) != 1:
        return None
    first, second, activation = zip(*parts, strict=True)
    return (
        [layer.weight for layer in first],
        [layer.bias for layer in first],
        [layer.weight for layer in second],
        [layer.bias for layer in second],
        activation[0],
    )


def _linear_pair(expert: nn.Module) -> tuple[nn.Linear, nn.Linear, str] | None:
    if isinstance(expert, FeedForward):
        if expert.training and expert.dropout > 0:
            return None
        return expert.fc1, expert.fc2, expert.activation
    if (
        isinstance(expert, nn.Sequential)
        and [type(layer) for layer in expert] == [nn.Linear, nn.GELU, nn.Linear]
        and expert[0].bias is not None
        and expert[2].bias is not None
    ):
        return expert[0], expert[2], "gelu" if expert[1].approximate == "none" else "gelu_tanh"
    return None


def run_experts(
    x_RD: torch.Tensor,
    counts_E: torch.Tensor,
    order_R: torch.Tensor,
    experts: Sequence[nn.Module],
    impl: str,
    scale_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return every row's expert output, in the rows' own order; 0 for rows not in order_R.

    order_R lists the rows expert by expert, counts_E of them each. scale_T multiplies each row's
    result. Every expert is called, also with 0 rows, so that each rank makes the same collective
    calls.
    """
    weights = ffn_weights(experts)
    if weights is not None:
        w1, b1, w2, b2, activation = weights
        return moe_kernels.expert_ffn(
            x_RD,
            counts_E,
            w1,
            b1,
            w2,
            b2,
            activation,
            order_R=order_R,
            scale_T=scale_T,
            impl=impl,
        )
    counts = counts_E.tolist()
    order_R = order_R[: sum(counts)].long()  # a GPU's is int32, with unrouted rows at its end
    blocks = x_RD[order_R].split(counts)
    y_RD = torch.cat([expert(block) for expert, block in zip(experts, blocks, strict=True)])
    if scale_T is not None:
        y_RD = y_RD * scale_T[order_R, None].to(y_RD.dtype)
    return y_RD.new_zeros((len(x_RD), y_RD.shape[1])).index_copy(0, order_R, y_RD)
