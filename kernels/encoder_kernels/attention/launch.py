"""Launches of attention for short sequences: one a bucket, forward and backward.

T tokens, H heads, d head size.
"""

import math

import torch
from torch import Tensor

from encoder_kernels.attention import kernel
from encoder_kernels.attention.plan import SequencePlan
from encoder_kernels.dropout import cut_of, scale_of
from moe_kernels.block_sizes import power_of_2
from moe_kernels.implementation import upcasts

# Warps of a program by its block: the fewest with which nothing spills on sm_90; not timed. From 64
# on one warp group of Hopper's matrix units, 4 warps, is the least.
WARPS = {16: 1, 32: 1, 64: 4, 128: 8}


def launch_attend(
    q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, out_THd: Tensor, plan: SequencePlan,
    scale: float, dropout: float, seed: Tensor | None,
) -> None:  # fmt: skip
    """Write the rows of out_THd of all sequences that have a bucket."""
    with torch.cuda.device_of(q_THd):
        for bucket in plan.buckets:
            kernel.attend_kernel[(bucket.count * q_THd.shape[1],)](
                q_THd, k_THd, v_THd, plan.ends, plan.ends if seed is None else seed, out_THd,
                bucket.first, q_THd.stride(0), scale * math.log2(math.e), cut_of(dropout),
                scale_of(dropout), **_constants(q_THd, dropout), BLOCK=bucket.block,
                num_warps=WARPS[bucket.block],
            )  # fmt: skip


def launch_attend_grad(
    q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, grad_THd: Tensor, grads_T3Hd: Tensor,
    plan: SequencePlan, scale: float, dropout: float, seed: Tensor | None,
) -> None:  # fmt: skip
    """Write the rows of grads_T3Hd (of q, k and v) of all sequences that have a bucket."""
    with torch.cuda.device_of(q_THd):
        for bucket in plan.buckets:
            kernel.attend_grad_kernel[(bucket.count * q_THd.shape[1],)](
                q_THd, k_THd, v_THd, grad_THd, plan.ends, plan.ends if seed is None else seed,
                grads_T3Hd, bucket.first, q_THd.stride(0), scale, scale * math.log2(math.e),
                cut_of(dropout), scale_of(dropout), **_constants(q_THd, dropout),
                BLOCK=bucket.block, num_warps=_grad_warps(bucket.block, q_THd.shape[2]),
            )  # fmt: skip


def _grad_warps(block: int, size: int) -> int:
    return 2 if block == 32 and size > 64 else WARPS[block]


def _constants(q_THd: Tensor, dropout: float) -> dict[str, int]:
    _, heads, size = q_THd.shape
    return {
        "H": heads,
        "D": size,
        "BLOCK_D": max(16, power_of_2(size)),
        "DROPOUT": dropout > 0,
        "UPCAST": upcasts(q_THd.dtype),
    }
