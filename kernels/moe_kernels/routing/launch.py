"""Launches of the Triton routing kernels, and routing's autograd Function on them.

T tokens, D hidden size, G gates, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moe_kernels.block_sizes import (
    MULTIPROCESSORS,
    cdiv,
    gate_chunk,
    power_of_2,
    route_block,
)
from moe_kernels.first_order import first_order
from moe_kernels.implementation import interpreting, upcasts
from moe_kernels.routing import kernel
from moe_kernels.routing.types import Routed

# The kernels hold E + 1 counts and a block's place among them in registers.
MAX_EXPERTS = 256
GRAD_BLOCK_T, GRAD_BLOCK_D = 32, 128


class GateTerm(NamedTuple):
    """What routing's gradient is made of."""

    gate_ids_T: Tensor | None
    grad_logits_TE: Tensor
    gate_weight: Tensor


def gate_term_arguments(gate: GateTerm | None, x: Tensor) -> tuple[tuple, dict[str, int]]:
    """Return (tensors, constants) of routing's term in a kernel for rows of x's type; None: none.

    x stands in for tensors that are not there.
    """
    if gate is None:
        constants = {"G": 0, "E_PAD": 1, "CHUNK": 16, "TERMS": 0, "HAS_IDS": False}
        return (x, x, x), constants
    has_ids = gate.gate_ids_T is not None
    constants = gate_shape(gate.gate_weight, gate.grad_logits_TE.shape[1])
    del constants["E"]
    constants |= {"TERMS": _terms(x.dtype, gate.gate_weight.dtype), "HAS_IDS": has_ids}
    ids = gate.gate_ids_T if has_ids else x
    return (ids, gate.grad_logits_TE, gate.gate_weight), constants


def _terms(rows: torch.dtype, other: torch.dtype) -> int:
    """Return split_dot's TERMS for a product with a factor of type `other`."""
    if torch.float32 in (rows, other):
        return 0
    return 2 if other == torch.bfloat16 else 3


def gate_shape(gate_weight: Tensor, num_experts: int) -> dict[str, int]:
    """Return the kernels' constants about gates."""
    num_gates = gate_weight.shape[0] // num_experts
    padded = power_of_2(num_experts)
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
    num_blocks = cdiv(num_tokens, block_t)
    block_counts = new((num_blocks, num_experts + 1), dtype=torch.int32)
    narrow = x_TD.dtype == gate_weight.dtype != torch.float32
    if interpreting() and x_TD.dtype == torch.bfloat16:
        narrow = False
    kernel.choose_kernel[(num_blocks,)](
        x_TD, gate_weight, x_TD if gate_ids_T is None else gate_ids_T,
        x_TD if mask_T is None else mask_T.view(torch.uint8),
        expert_T, prob_T, logits_TE, block_counts, num_tokens,
        D=hidden, **gate_shape(gate_weight, num_experts),
        E1_PAD=power_of_2(num_experts + 1), HAS_IDS=gate_ids_T is not None,
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
        E1_PAD=power_of_2(segments), BLOCK_T=route_block(num_tokens),
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
    dots: Tensor | None,
    grad_prob_T: Tensor | None,
    grad_logits_TE: Tensor | None,
) -> Tensor:
    """Return dL/dlogits [T, E] float32 from the gradients that reached scale, prob and logits.

    dots [parts, T]: scale dL/dscale, in parts.
    """
    num_tokens, num_experts = routed.logits_TE.shape
    out = torch.empty_like(routed.logits_TE)
    none = routed.prob_T
    block_t = 128
    kernel.logits_grad_kernel[(cdiv(num_tokens, block_t),)](
        routed.expert_T, routed.prob_T, routed.logits_TE,
        none if dots is None else dots,
        none if grad_prob_T is None else grad_prob_T.contiguous(),
        none if grad_logits_TE is None else grad_logits_TE.contiguous(), out, num_tokens,
        E=num_experts, E_PAD=power_of_2(num_experts),
        PARTS=0 if dots is None else dots.shape[0],
        HAS_PROB=grad_prob_T is not None, HAS_LOGITS=grad_logits_TE is not None, BLOCK_T=block_t,
    )  # fmt: skip
    return out


def launch_gate_weight_grad(x_TD: Tensor, gate: GateTerm) -> Tensor:
    """Return the gradient of gate_weight: a launch of parts, their sum, and a cast if 16-bit."""
    num_tokens, hidden = x_TD.shape
    gate_weight, num_experts = gate.gate_weight, gate.grad_logits_TE.shape[1]
    shape = gate_shape(gate_weight, num_experts)
    tiles_d = cdiv(hidden, GRAD_BLOCK_D)
    chunks = cdiv(shape["G"] * shape["E_PAD"], shape["CHUNK"])
    # Two programs a multiprocessor, at least a block of tokens each.
    splits = max(1, 2 * MULTIPROCESSORS // (tiles_d * chunks))
    splits = max(1, min(splits, num_tokens // GRAD_BLOCK_T))
    parts = x_TD.new_empty((splits, *gate_weight.shape), dtype=torch.float32)
    per_split = cdiv(cdiv(num_tokens, splits), GRAD_BLOCK_T) * GRAD_BLOCK_T
    has_ids = gate.gate_ids_T is not None
    terms = 0 if gate_weight.dtype == torch.float32 else _terms(x_TD.dtype, x_TD.dtype)
    kernel.gate_weight_grad_kernel[(splits, tiles_d, chunks)](
        x_TD, gate.gate_ids_T if has_ids else x_TD, gate.grad_logits_TE, parts, num_tokens,
        per_split, D=hidden, **shape, TERMS=terms, UPCAST=upcasts(x_TD.dtype), HAS_IDS=has_ids,
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
    @first_order
    def backward(ctx, _expert, grad_prob_T, grad_logits_TE, _counts, _order):
        x_TD, gate_weight, gate_ids_T, *routed = ctx.saved_tensors
        if grad_prob_T is None and grad_logits_TE is None:
            return (None,) * 6
        grad_x_TD = grad_weight = None
        with torch.cuda.device_of(x_TD):
            grad_TE = launch_logits_grad(Routed(*routed), None, grad_prob_T, grad_logits_TE)
            gate = GateTerm(gate_ids_T, grad_TE, gate_weight)
            if ctx.needs_input_grad[1]:
                grad_weight = launch_gate_weight_grad(x_TD, gate)
            if ctx.needs_input_grad[0]:
                grad_x_TD = _launch_gate_input_grad(x_TD, gate)
        return grad_x_TD, grad_weight, None, None, None, None


def _launch_gate_input_grad(x_TD: Tensor, gate: GateTerm) -> Tensor:
    num_tokens, hidden = x_TD.shape
    grad_x_TD = torch.empty_like(x_TD)
    grid = (cdiv(num_tokens, GRAD_BLOCK_T), cdiv(hidden, GRAD_BLOCK_D))
    tensors, constants = gate_term_arguments(gate, x_TD)
    kernel.gate_input_grad_kernel[grid](
        *tensors, grad_x_TD, num_tokens, D=hidden, E=gate.grad_logits_TE.shape[1], **constants,
        UPCAST=upcasts(x_TD.dtype), BLOCK_T=GRAD_BLOCK_T, BLOCK_D=GRAD_BLOCK_D, num_warps=4,
    )  # fmt: skip
    return grad_x_TD
