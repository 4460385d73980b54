"""Experts: the dense FFN as a module, and a pass of sorted rows through a list of experts.

R routed rows sorted by expert, D hidden size, F intermediate size, E experts.
"""

from collections.abc import Sequence

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.models.dropout import dropout
from moe_kernels import ACTIVATIONS, activate

_FUNCTIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""The functions of moe_kernels' activations, by transformers' names."""


def activation_of(hidden_act: str, gated: bool = False) -> str:
    """Return our name for a transformers `hidden_act`, of a gated FFN or of a plain one.

    Raises ValueError for one not carried.
    """
    ours = {activation: name for name, activation in ACTIVATIONS.items()}
    names = {name: ours.get((function, gated)) for name, function in _FUNCTIONS.items()}
    allowed = sorted(name for name, own in names.items() if own is not None)
    if hidden_act not in allowed:
        of = "hidden_act of a gated FFN" if gated else "hidden_act"
        raise ValueError(f"{of} {hidden_act!r} is not supported; allowed: {allowed}")
    return names[hidden_act]


class FeedForward(nn.Module):
    """A transformer's FFN: fc2(activate(fc1(x))); in training `dropout` between the two.

    activation: one of moe_kernels.ACTIVATIONS. Of a gated one fc1 gives 2 x intermediate_size: the
    half that is activated, then the half that it is multiplied by. bias: of both layers.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {sorted(ACTIVATIONS)}, got {activation!r}")
        rows = ACTIVATIONS[activation].halves * intermediate_size
        self.fc1 = nn.Linear(hidden_size, rows, bias=bias)
        self.fc2 = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = activation
        self.dropout = dropout

    @property
    def inner(self) -> int:
        """How many neurons stand between the two layers: the columns of fc2's weight."""
        return self.fc2.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = activate(self.fc1(x), self.activation)
        return self.fc2(dropout(h, self.dropout, self.training))


FFNWeights = tuple[
    list[torch.Tensor],
    list[torch.Tensor] | None,
    list[torch.Tensor],
    list[torch.Tensor] | None,
    str,
]


def ffn_weights(experts: Sequence[nn.Module]) -> FFNWeights | None:
    """Return (w1, b1, w2, b2, activation) when the experts are two-layer FFNs; None for no biases.

    FeedForward and nn.Sequential(Linear, GELU, Linear) are, as long as their tensors say all that
    they compute: with plain nn.Linear layers and nothing hooked to them (adapters, quantised,
    pruned and offloaded layers have another class, hooks or a forward of their own). None for any
    other module, for a bias that only some have, and while they drop activations: those are called.
    """
    if torch.nn.modules.module._has_any_global_hook():
        return None
    parts = [_linear_pair(expert) for expert in experts]
    if any(part is None for part in parts) or len({part[2] for part in parts}) != 1:
        return None
    first, second, activation = zip(*parts, strict=True)
    biases = [[layer.bias for layer in layers] for layers in (first, second)]
    if any(len({bias is None for bias in kind}) != 1 for kind in biases):
        return None
    b1, b2 = (None if kind[0] is None else kind for kind in biases)
    w1, w2 = ([layer.weight for layer in layers] for layers in (first, second))
    return w1, b1, w2, b2, activation[0]


def _linear_pair(expert: nn.Module) -> tuple[nn.Linear, nn.Linear, str] | None:
    if type(expert) is FeedForward:
        first, second, activation = expert.fc1, expert.fc2, expert.activation
        layers = (first, second)
        if expert.training and expert.dropout > 0:
            return None
    elif type(expert) is nn.Sequential and len(expert) == 3 and type(expert[1]) is nn.GELU:
        first, gelu, second = layers = tuple(expert)
        activation = "gelu" if gelu.approximate == "none" else "gelu_tanh"
    else:
        return None
    if type(first) is not nn.Linear or type(second) is not nn.Linear:
        return None
    if any(map(_is_hooked, (expert, *layers))):
        return None
    return first, second, activation


def _is_hooked(module: nn.Module) -> bool:
    """Return whether a call of the module does more than its class's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def run_experts(
    x_RD: torch.Tensor,
    counts_E: torch.Tensor,
    order_R: torch.Tensor,
    experts: Sequence[nn.Module],
    impl: str,
    scale_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return every row's expert output, in the rows' own order; 0 for rows not in order_R.

    An expert that gives (output, bias), as Megatron's do, counts with its output, as in DeepSpeed.

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
    y_RD = torch.cat([_output(expert(x)) for expert, x in zip(experts, blocks, strict=True)])
    if scale_T is not None:
        y_RD = y_RD * scale_T[order_R, None].to(y_RD.dtype)
    return y_RD.new_zeros((len(x_RD), y_RD.shape[1])).index_copy(0, order_R, y_RD)


def _output(of_expert: torch.Tensor | tuple) -> torch.Tensor:
    return of_expert[0] if isinstance(of_expert, tuple) else of_expert
