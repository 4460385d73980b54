"""Launches of the Triton routing kernels, and routing's autograd Function on them.

T tokens, D hidden size, G gates, E experts.
"""

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_kernels.block_sizes import MULTIPROCESSORS, gate_chunk, route_block
from moe_kernels.implementation import interpreting
from moe_kernels.routing import kernel
from moe_kernels.routing.types import Routed

# The kernels hold E + 1 counts and a block's place among them in registers.
MAX_EXPERTS = 256
GRAD_BLOCK_T, GRAD_BLOCK_D = 32, 128


def gate_shape(gate_weight: Tensor, num_experts: int) -> dict[str, int]:
    """Return the kernels' constants about gates."""
    num_gates = gate_weight.shape[0] // num_experts
    padded = triton.next_power_of_2(num_experts)
    chunk = gate_chunk(num_gates, padded)
    return {"G": num_gates, "E": num_experts, "E_PAD": padded, "CHUNK": chunk}


def launch_choice(
    x_TD: Tensor,
    gate_weight: Tensor,
    gate_ids_T: Tensor | None,
    mask_T: Tensor | None,
    num_experts: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (expert_T, prob_T, logits_TE, block_counts): one launch, one pass over x."""
    num_tokens, hidden = x_TD.shape
    if num_experts > MAX_EXPERTS:
        raise ValueError(f'num_experts={num_experts}: impl "triton" allows at most {MAX_EXPERTS}')
    new = x_TD.new_empty
    expert_T = new(num_tokens, dtype=torch.int32)
    prob_T = new(num_tokens, dtype=torch.float32)
    logits_TE = new((num_tokens, num_experts), dtype=torch.float32)
    block_t = route_block(num_tokens)
    num_blocks = triton.cdiv(num_tokens, block_t)
    block_counts = new((num_blocks, num_experts + 1), dtype=torch.int32)
    narrow = x_TD.dtype == gate_weight.dtype != torch.float32
    if interpreting() and x_TD.dtype == torch.bfloat16:
        narrow = False
    kernel.choose_kernel[(num_blocks,)](
        x_TD, gate_weight, x_TD if gate_ids_T is None else gate_ids_T,
        x_TD if mask_T is None else mask_T.view(torch.uint8),
        expert_T, prob_T, logits_TE, block_counts, num_tokens,
        D=hidden, **gate_shape(gate_weight, num_experts),
        E1_PAD=triton.next_power_of_2(num_experts + 1), HAS_IDS=gate_ids_T is not None,
        HAS_MASK=mask_T is not None, NARROW=narrow, BLOCK_T=block_t, BLOCK_D=64, num_warps=4,
    )  # fmt: skip
    return expert_T, prob_T, logits_TE, block_counts


def launch_order(expert_T: Tensor, block_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return (counts_E1, order_T) from the blocks' counts: two launches, no wait for the host."""
    num_tokens, (num_blocks, segments) = expert_T.shape[0], block_counts.shape
    counts_E1 = torch.empty(segments, dtype=torch.int32, device=expert_T.device)
    order_T = torch.empty(num_tokens, dtype=torch.int32, device=expert_T.device)
    kernel.scan_kernel[(segments,)](block_counts, counts_E1, num_blocks, E1=segments, BLOCK=1024)
    kernel.order_kernel[(num_blocks,)](
        expert_T, block_counts, counts_E1, order_T, num_tokens, E=segments - 1,
        E1_PAD=triton.next_power_of_2(segments), BLOCK_T=route_block(num_tokens),
    )  # fmt: skip
    return counts_E1, order_T


def launch_route(x_TD, gate_weight, gate_ids_T, mask_T, num_experts: int) -> Routed:
    """Return the routing of every token: three launches."""
    with torch.cuda.device_of(x_TD):
        choice = launch_choice(x_TD, gate_weight, gate_ids_T, mask_T, num_experts)
        expert_T, prob_T, logits_TE, block_counts = choice
        counts_E1, order_T = launch_order(expert_T, block_counts)
    return Routed(expert_T, prob_T, logits_TE, counts_E1, order_T)


def route_launcher(name: str):
    """Return the function that launches the routing of implementation "triton" or "cuda"."""
    if name == "triton":
        return launch_route
    from moe_kernels.cuda import extension

    return extension.launch_route


def launch_logits_grad(
    routed: Routed,
    grad_scale_parts: Tensor | None,
    preserve: bool,
    grad_prob_T: Tensor | None,
    grad_logits_TE: Tensor | None,
) -> Tensor:
    """Return dL/dlogits [T, E] float32 from the gradients that reached scale, prob and logits."""
    num_tokens, num_experts = routed.logits_TE.shape
    out = torch.empty_like(routed.logits_TE)
    none = routed.prob_T
    block_t = 128
    kernel.logits_grad_kernel[(triton.cdiv(num_tokens, block_t),)](
        routed.expert_T, routed.prob_T, routed.logits_TE,
        none if grad_scale_parts is None else grad_scale_parts,
        none if grad_prob_T is None else grad_prob_T.contiguous(),
        none if grad_logits_TE is None else grad_logits_TE.contiguous(), out, num_tokens,
        E=num_experts, E_PAD=triton.next_power_of_2(num_experts),
        PARTS=0 if grad_scale_parts is None else grad_scale_parts.shape[0], PRESERVE=preserve,
        HAS_PROB=grad_prob_T is not None, HAS_LOGITS=grad_logits_TE is not None, BLOCK_T=block_t,
    )  # fmt: skip
    return out


def launch_gate_weight_grad(
    x_TD: Tensor, gate_weight: Tensor, gate_ids_T: Tensor | None, grad_logits_TE: Tensor
) -> Tensor:
    """Return the gradient of gate_weight: a launch of parts, their sum, and a cast if 16-bit."""
    (num_tokens, hidden), num_experts = x_TD.shape, grad_logits_TE.shape[1]
    shape = gate_shape(gate_weight, num_experts)
    tiles_d = triton.cdiv(hidden, GRAD_BLOCK_D)
    chunks = triton.cdiv(shape["G"] * shape["E_PAD"], shape["CHUNK"])
    # Two programs a multiprocessor, at least a block of tokens each.
    splits = max(1, 2 * MULTIPROCESSORS // (tiles_d * chunks))
    splits = max(1, min(splits, num_tokens // GRAD_BLOCK_T))
    parts = x_TD.new_empty((splits, *gate_weight.shape), dtype=torch.float32)
    per_split = triton.cdiv(triton.cdiv(num_tokens, splits), GRAD_BLOCK_T) * GRAD_BLOCK_T
    kernel.gate_weight_grad_kernel[(splits, tiles_d, chunks)](
        x_TD, x_TD if gate_ids_T is None else gate_ids_T, grad_logits_TE, parts, num_tokens,
        per_split, D=hidden, **shape, HAS_IDS=gate_ids_T is not None,
        ONE_CHUNK=chunks == 1, BLOCK_T=GRAD_BLOCK_T, BLOCK_D=GRAD_BLOCK_D, num_warps=4,
    )  # fmt: skip
    return parts.sum(0).to(gate_weight.dtype)


class TritonRoute(torch.autograd.Function):
    """(expert_T, prob_T, logits_TE, counts_E, order_T) with gradients of prob_T and logits_TE."""

    @staticmethod
    def forward(ctx, x_TD, gate_weight, gate_ids_T, mask_T, num_experts: int, launch):
        routed = launch(x_TD, gate_weight, gate_ids_T, mask_T, num_experts)
        ctx.save_for_backward(x_TD, gate_weight, gate_ids_T, *routed)
        counts_E = routed.counts_E1[:num_experts]
        ctx.mark_non_differentiable(routed.expert_T, counts_E, routed.order_T)
        ctx.set_materialize_grads(False)
        return routed.expert_T, routed.prob_T, routed.logits_TE, counts_E, routed.order_T

    @staticmethod
    @once_differentiable
    def backward(ctx, _expert, grad_prob_T, grad_logits_TE, _counts, _order):
        x_TD, gate_weight, gate_ids_T, *routed = ctx.saved_tensors
        if grad_prob_T is None and grad_logits_TE is None:
            return (None,) * 6
        grad_x_TD = grad_weight = None
        with torch.cuda.device_of(x_TD):
            grad_TE = launch_logits_grad(Routed(*routed), None, False, grad_prob_T, grad_logits_TE)
            if ctx.needs_input_grad[1]:
                grad_weight = launch_gate_weight_grad(x_TD, gate_weight, gate_ids_T, grad_TE)
            if ctx.needs_input_grad[0]:
                grad_x_TD = _launch_gate_input_grad(x_TD, gate_weight, gate_ids_T, grad_TE)
        return grad_x_TD, grad_weight, None, None, None, None


def _launch_gate_input_grad(x_TD, gate_weight, gate_ids_T, grad_logits_TE) -> Tensor:
    num_tokens, hidden = x_TD.shape
    grad_x_TD = torch.empty_like(x_TD)
    grid = (triton.cdiv(num_tokens, GRAD_BLOCK_T), triton.cdiv(hidden, GRAD_BLOCK_D))
    kernel.gate_input_grad_kernel[grid](
        x_TD if gate_ids_T is None else gate_ids_T, grad_logits_TE, gate_weight, grad_x_TD,
        num_tokens, D=hidden, **gate_shape(gate_weight, grad_logits_TE.shape[1]),
        HAS_IDS=gate_ids_T is not None, BLOCK_T=GRAD_BLOCK_T, BLOCK_D=GRAD_BLOCK_D, num_warps=4,
    )  # fmt: skip
    return grad_x_TD
