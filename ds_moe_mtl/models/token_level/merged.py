"""Merged experts: a task's FFN is a mixture of all experts' weights, made once per call.

The FFN of gate g has the weights sum_e softmax(a_g)_e W_e, for both matrices and both biases, if it
has any. A token goes to its gate's FFN, so no batch is split among experts and every expert and
every mixture in use gets a gradient from every token. A token costs what it costs the dense FFN;
the merge costs 2 x gates in the call x E x weights of one FFN operations.

Sources: SMEAR (Muqeeth et al., 2306.03745) merges by a router over the example; Poly and MHR
(Caccia et al., 2211.03831) by a table of logits per task, as here, and found that averaging the
experts after training keeps the gain.

T tokens, D hidden size, G gates, P gates with tokens in the call, E experts.
"""

from collections.abc import Sequence

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.models.token_level.experts import FFNWeights
from moe_kernels.first_order import first_order
from moe_kernels.routing.types import sort_by_expert

TILT = 0.7
"""Share of expert g mod E in the new mixture of gate g; the others share the rest equally.

Our choice. Experts begin as copies: under equal shares all would get one gradient and stay copies
for ever. At 0.7 of 4 experts, a task's own expert gets 7 times the gradient of another.
"""


class Mixtures(nn.Module):
    """The logits a of all gates of a layer: `weight` [G, E], where a router has its matrix."""

    def __init__(self, num_gates: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(tilted_logits(num_gates, num_experts))

    def forward(self) -> torch.Tensor:
        """Return the logits."""
        return self.weight


def tilted_logits(num_gates: int, num_experts: int) -> torch.Tensor:
    """Return logits [G, E] whose softmax is TILT on expert g mod E, the rest shared equally."""
    if num_experts == 1:
        return torch.zeros(num_gates, 1)
    shares_GE = torch.full((num_gates, num_experts), (1 - TILT) / (num_experts - 1))
    gates = torch.arange(num_gates)
    shares_GE[gates, gates % num_experts] = TILT
    return shares_GE.log()


def mixture_shares(logits_GE: torch.Tensor) -> torch.Tensor:
    """Return each gate's shares of the experts [G, E], at least in float32; rows sum to 1."""
    return logits_GE.to(torch.promote_types(torch.float32, logits_GE.dtype)).softmax(-1)


def merged_ffn(
    x: torch.Tensor,
    logits_GE: torch.Tensor,
    weights: FFNWeights,
    gate_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (y in x's shape, 0 where mask is 0; load_E float32).

    x [batch, seq, D]; gate_ids [batch] or [batch, seq], None for one gate; mask [batch, seq].
    weights: the experts' ffn_weights. load_E: the sum over tokens of their gate's shares. Only
    gates with tokens are merged; a host waits for a GPU to know them, once per call. Raises
    ValueError for gate ids that do not fit.
    """
    gates_T = _gate_of_token(x, gate_ids, mask, len(logits_GE))
    counts_G, order_R = sort_by_expert(gates_T, len(logits_GE))
    counts = counts_G.tolist()
    # Without any token the first gate's FFN runs on no rows: every parameter has its gradient.
    present = [gate for gate, count in enumerate(counts) if count] or [0]
    shares_PE = mixture_shares(logits_GE)[present]
    *kinds, activation = weights
    merged = [None if kind is None else merge(shares_PE, kind).unbind(0) for kind in kinds]
    counts_P = [counts[gate] for gate in present]
    y_TD = moe_kernels.expert_ffn(
        x.reshape(-1, x.shape[-1]), counts_P, *merged, activation, order_R=order_R, impl=impl
    )
    load_E = shares_PE.new_tensor(counts_P) @ shares_PE.detach()
    return y_TD.reshape(x.shape), load_E.float()


def merge(shares_PE: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return [P, *shape]: for each row of shares the sum of E tensors of one shape and type.

    Summed in float32 at least and rounded once. Keeps nothing but its arguments for the gradient.
    """
    return _Merge.apply(shares_PE, *weights)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shares_PE, *weights):
        ctx.save_for_backward(shares_PE, *weights)
        merged = shares_PE @ _rows(weights, shares_PE.dtype)
        return merged.to(weights[0].dtype).view(len(shares_PE), *weights[0].shape)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        shares_PE, *weights = ctx.saved_tensors
        grad_PN = grad.reshape(len(shares_PE), -1).to(shares_PE.dtype)
        grad_shares = None
        if ctx.needs_input_grad[0]:
            grad_shares = grad_PN @ _rows(weights, shares_PE.dtype).t()
        grads: Sequence[torch.Tensor | None] = [None] * len(weights)
        if any(ctx.needs_input_grad[1:]):
            grad_EN = (shares_PE.t() @ grad_PN).to(weights[0].dtype)
            grads = grad_EN.view(len(weights), *weights[0].shape).unbind(0)
        return grad_shares, *grads


def _rows(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return E tensors as the rows of a matrix [E, numbers of one]."""
    return torch.stack([weight.detach().reshape(-1).to(dtype) for weight in weights])


def _gate_of_token(
    x: torch.Tensor, gate_ids: torch.Tensor | None, mask: torch.Tensor | None, num_gates: int
) -> torch.Tensor:
    """Return every token's gate, int32 [T]; -1 for one that is no token."""
    lead = x.shape[:-1]
    if gate_ids is None:
        if num_gates > 1:
            raise ValueError(f"gate_ids=None: allowed with one gate only, there are {num_gates}")
        gate_ids = torch.zeros(lead, dtype=torch.int32, device=x.device)
    elif gate_ids.shape == lead[:1]:
        gate_ids = gate_ids.view(-1, *[1] * (len(lead) - 1)).expand(lead)
    if gate_ids.shape != lead:
        raise ValueError(
            f"gate_ids has shape {list(gate_ids.shape)}: must be {list(lead)} or {list(lead[:1])}"
        )
    gates_T = gate_ids.reshape(-1).to(torch.int32)
    if x.device.type == "cpu" and gates_T.numel():
        low, high = (int(bound) for bound in torch.aminmax(gates_T))
        if low < 0 or high >= num_gates:
            wrong = low if low < 0 else high
            raise ValueError(f"gate_ids has {wrong}: must be in 0..{num_gates - 1}")
    real_T = (gates_T >= 0) & (gates_T < num_gates)  # on a GPU, where looking would wait
    if mask is not None:
        real_T = real_T & (mask.reshape(-1) != 0)
    return torch.where(real_T, gates_T, -1)
