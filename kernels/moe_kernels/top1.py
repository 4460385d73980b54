"""The whole top-1 layer in one call: route, run the experts, scale, back in token order.

T tokens, D hidden size, F inner size, G gates, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_kernels.ffn.choice import choose_ffn
from moe_kernels.ffn.function import check_experts, expert_ffn, flat_weights, has_biases
from moe_kernels.implementation import check_kernel_dtype, contiguous, resolve_impl
from moe_kernels.opaque import opaque
from moe_kernels.routing.function import route, route_arguments

GATE_SCALES = ("paper", "preserve")


@opaque
def top1_moe_ffn(
    x_TD: Tensor,
    gate_weight: Tensor,
    gate_ids_T: Tensor | None,
    w1: Sequence[Tensor],
    b1: Sequence[Tensor] | None,
    w2: Sequence[Tensor],
    b2: Sequence[Tensor] | None,
    mask_T: Tensor | None = None,
    gate_scale: str = "paper",
    activation: str = "gelu",
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y_TD, expert_T, gate_T, counts_E) of a dropless top-1 mixture of experts.

    y_TD is each token's chosen expert's output times its gate value (see gate_scale_of), in the
    shape and type of x, and 0 where mask_T is 0; expert_T int32 is -1 there. gate_T float32 is the
    chosen expert's softmax probability, counts_E int32 the tokens of each expert. Arguments as in
    `route` and `expert_ffn`. Differentiable in x, gate_weight and every expert tensor.
    """
    name = resolve_impl(impl, x_TD.device)
    if name != "torch" and not torch.is_autocast_enabled(x_TD.device.type):
        check_experts(x_TD, w1, b1, w2, b2, activation)
        check_gate_scale(gate_scale)
        if choose_ffn(impl, x_TD.device, activation, has_biases(b1, b2)).impl != "torch":
            arguments = route_arguments(x_TD, gate_weight, gate_ids_T, len(w1), mask_T)
            weights = flat_weights(w1, b1, w2, b2)
            return _top1_on_gpu(x_TD, arguments, gate_scale, activation, weights, name)
    routing = route(x_TD, gate_weight, gate_ids_T, len(w1), mask_T, impl=impl)
    scale_T = gate_scale_of(routing.prob_T, gate_scale)
    rows_TD = x_TD.reshape(-1, x_TD.shape[-1])
    y_TD = expert_ffn(
        rows_TD,
        routing.counts_E,
        w1,
        b1,
        w2,
        b2,
        activation,
        order_R=routing.order_R,
        scale_T=scale_T,
        impl=impl,
    )
    return y_TD.view(x_TD.shape), routing.expert_T, routing.prob_T, routing.counts_E


def gate_scale_of(prob_T: Tensor, gate_scale: str) -> Tensor:
    """Return scale_T, what an expert's output is multiplied by.

    "paper": the probability itself (MT-TaG, eq. 3-6). "preserve": p / stopgrad(p), which is 1 with
    the gradient of log p: copies of one dense FFN then compute exactly what it did. Our choice.
    """
    check_gate_scale(gate_scale)
    if gate_scale == "paper":
        return prob_T
    # A pad's probability is 0; 0 / 1 keeps its scale, and its gradient, finite.
    return prob_T / prob_T.detach().masked_fill(prob_T.detach() == 0, 1.0)


def check_gate_scale(gate_scale: str) -> None:
    """Raise ValueError for a gate scale there is not."""
    if gate_scale not in GATE_SCALES:
        raise ValueError(f"gate_scale={gate_scale!r}: must be one of {', '.join(GATE_SCALES)}")


def _top1_on_gpu(x, arguments, gate_scale: str, activation: str, weights, name: str):
    from moe_kernels.fused import TritonTop1
    from moe_kernels.routing.launch import route_launcher

    x_TD, gate_weight, gate_ids_T, mask_T = arguments
    check_kernel_dtype("x_TD", x_TD)
    check_kernel_dtype("gate_weight", gate_weight)
    y_TD, expert_T, prob_T, counts_E = TritonTop1.apply(
        x_TD.contiguous(),
        gate_weight.contiguous(),
        contiguous(gate_ids_T),
        contiguous(mask_T),
        gate_scale == "preserve",
        activation,
        route_launcher(name),
        *map(contiguous, weights),
    )
    return y_TD.view(x.shape), expert_T, prob_T, counts_E
