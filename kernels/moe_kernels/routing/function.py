"""The public routing operator: checks its arguments once and picks the implementation.

T tokens, D hidden size, G gates, E experts.
"""

import torch
from torch import Tensor

from moe_kernels.implementation import check_kernel_dtype, contiguous, resolve_impl
from moe_kernels.opaque import opaque
from moe_kernels.routing.blocks import gate_logits_by_block
from moe_kernels.routing.reference import choose
from moe_kernels.routing.types import Routing, sort_by_expert


@opaque
def route(
    x_TD: Tensor,
    gate_weight: Tensor,
    gate_ids_T: Tensor | None,
    num_experts: int,
    mask_T: Tensor | None = None,
    *,
    with_logits: bool = False,
    impl: str = "auto",
) -> Routing:
    """Return the top-1 Routing of every token under its own gate.

    x_TD: [T, D], or [B, S, D] (then T = B * S and gate ids may be one a sequence, [B]).
    gate_weight: [G * E, D], gate g's experts in rows g * E to (g + 1) * E; any float type.
    gate_ids_T: the gate of each token, integers in [0, G); None allowed with one gate.
    mask_T: 1 = a real token, 0 = a pad, which is neither routed nor counted.
    with_logits: also return the logits, differentiable, for load-balance and z losses.
    Products and softmax are in float32. Raises ValueError for arguments that do not fit; gate ids
    out of range are refused on a CPU, and on a GPU (where looking would wait) left unrouted.
    """
    arguments = route_arguments(x_TD, gate_weight, gate_ids_T, num_experts, mask_T)
    x_TD, gate_weight, gate_ids_T, mask_T = arguments
    name = resolve_impl(impl, x_TD.device)
    if name != "torch":
        return _route_on_gpu(*arguments, num_experts, with_logits, name)
    with torch.autocast(x_TD.device.type, enabled=False):
        logits_TE = gate_logits_by_block(x_TD, gate_weight, gate_ids_T, num_experts)
        expert_T, prob_T = choose(logits_TE, mask_T)
        if with_logits and mask_T is not None:
            logits_TE = torch.where(mask_T.unsqueeze(1), logits_TE, 0.0)
    counts_E, order_R = sort_by_expert(expert_T, num_experts)
    return Routing(expert_T, prob_T, counts_E, order_R, logits_TE if with_logits else None)


def _route_on_gpu(x_TD, gate_weight, gate_ids_T, mask_T, num_experts, with_logits, name) -> Routing:
    from moe_kernels.routing.launch import TritonRoute, route_launcher

    check_kernel_dtype("x_TD", x_TD)
    check_kernel_dtype("gate_weight", gate_weight)
    expert_T, prob_T, logits_TE, counts_E, order_T = TritonRoute.apply(
        x_TD.contiguous(),
        gate_weight.contiguous(),
        contiguous(gate_ids_T),
        contiguous(mask_T),
        num_experts,
        route_launcher(name),
    )
    return Routing(expert_T, prob_T, counts_E, order_T, logits_TE if with_logits else None)


def route_arguments(x_TD, gate_weight, gate_ids_T, num_experts: int, mask_T):
    """Return (x_TD, gate_weight, gate_ids_T, mask_T) checked, flat, the mask as booleans."""
    hidden = x_TD.shape[-1]
    if gate_weight.dim() != 2 or gate_weight.shape[1] != hidden:
        raise ValueError(
            f"gate_weight has shape {tuple(gate_weight.shape)}: must be [gates * experts, {hidden}]"
        )
    if num_experts < 1 or gate_weight.shape[0] % num_experts:
        raise ValueError(
            f"num_experts={num_experts}: gate_weight's {gate_weight.shape[0]} rows must be a "
            "multiple of it"
        )
    num_gates = gate_weight.shape[0] // num_experts
    gate_ids_T = _per_token("gate_ids_T", gate_ids_T, x_TD)
    mask_T = _per_token("mask_T", mask_T, x_TD)
    if gate_ids_T is None and num_gates > 1:
        raise ValueError(
            f"gate_ids_T=None: allowed with one gate only, gate_weight has {num_gates}"
        )
    if mask_T is not None and mask_T.dtype != torch.bool:
        mask_T = mask_T != 0
    if x_TD.device.type == "cpu" and gate_ids_T is not None:
        _check_range(gate_ids_T, num_gates)
    return x_TD.reshape(-1, hidden), gate_weight, gate_ids_T, mask_T


def _per_token(name: str, values: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the values flat, one a token; a value a sequence is repeated over its tokens."""
    if values is None:
        return None
    lead = x.shape[:-1]
    if values.shape == lead:
        return values.reshape(-1)
    if x.dim() == 3 and values.shape == lead[:1]:
        return values.unsqueeze(1).expand(lead).reshape(-1)
    allowed = f"{list(lead)}" + (f" or {list(lead[:1])}" if x.dim() == 3 else "")
    raise ValueError(f"{name} has shape {list(values.shape)}: must be {allowed}")


def _check_range(gate_ids_T: Tensor, num_gates: int) -> None:
    if gate_ids_T.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(gate_ids_T))
    if low < 0 or high >= num_gates:
        raise ValueError(
            f"gate_ids_T has {low if low < 0 else high}: must be in 0..{num_gates - 1}"
        )
