"""The whole top-1 layer as one autograd Function on the Triton kernels.

Five launches forward and, with a 16-bit gate, eight backward. Against composing `route` and
`expert_ffn` it saves one pass over dL/dx: routing's term joins the experts' in the same kernel.
The inner pre-activations' gradient takes their place, so the pass needs no third inner tensor.

T tokens, D hidden size, F inner size, H rows of W1 (F or, gated, 2 F), G gates,
E experts.
"""

import torch

from moe_kernels.ffn import launch as ffn
from moe_kernels.first_order import first_order
from moe_kernels.routing import launch as routing


class TritonTop1(torch.autograd.Function):
    """(y_TD, expert_T, prob_T, counts_E); gradients of y_TD and prob_T."""

    @staticmethod
    def forward(
        ctx, x_TD, gate_weight, gate_ids_T, mask_T, preserve: bool, activation: str, route, *weights
    ):
        num_experts = len(weights) // 4
        routed = route(x_TD, gate_weight, gate_ids_T, mask_T, num_experts)
        y_TD, h_TH, a_TF = ffn.launch_experts(
            x_TD,
            routed.order_T,
            routed.counts_E1,
            None if preserve else routed.prob_T,
            ffn.as_experts(weights, activation),
            any(ctx.needs_input_grad),
        )
        counts_E = routed.counts_E1[:num_experts]
        ctx.save_for_backward(x_TD, gate_weight, gate_ids_T, h_TH, a_TF, *routed, *weights)
        ctx.preserve, ctx.activation = preserve, activation
        ctx.mark_non_differentiable(routed.expert_T, counts_E)
        ctx.set_materialize_grads(False)
        return y_TD, routed.expert_T, routed.prob_T, counts_E

    @staticmethod
    @first_order
    def backward(ctx, grad_y_TD, _expert, grad_prob_T, _counts):
        x_TD, gate_weight, gate_ids_T, h_TH, a_TF, *rest = ctx.saved_tensors
        routed, weights = routing.Routed(*rest[:5]), rest[5:]
        experts, counts = ffn.as_experts(weights, ctx.activation), routed.counts_E1
        grad_y_TD = torch.zeros_like(x_TD) if grad_y_TD is None else grad_y_TD.contiguous()
        grad_x_TD = grad_gate = None
        grads = (None,) * len(weights)
        with torch.cuda.device_of(x_TD):
            rows = ffn.launch_sort_rows(
                x_TD,
                grad_y_TD,
                routed.order_T,
                counts,
                None if ctx.preserve else routed.prob_T,
                experts,
                True,
            )
            grad_h_TH = ffn.launch_down_grad(
                rows, routed.order_T, counts, h_TH, experts, ffn.may_overwrite()
            )
            if any(ctx.needs_input_grad[7:]):
                by_kind = ffn.launch_expert_grads(rows, counts, grad_h_TH, a_TF, experts)
                grads = [tensor for kind in by_kind for tensor in kind]
            grad_TE = routing.launch_logits_grad(routed, rows.dots, grad_prob_T, None)
            gate = routing.GateTerm(gate_ids_T, grad_TE, gate_weight)
            if ctx.needs_input_grad[1]:
                grad_gate = routing.launch_gate_weight_grad(x_TD, gate)
            if ctx.needs_input_grad[0]:
                grad_x_TD = ffn.launch_input_grad(grad_h_TH, routed.order_T, counts, experts, gate)
        return grad_x_TD, grad_gate, None, None, None, None, None, *grads
