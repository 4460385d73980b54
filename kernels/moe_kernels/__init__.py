"""Top-1 mixture-of-experts operators: route, permute, expert_ffn, unpermute, and all in one call.

Imports torch only; triton is imported by the first call that needs it. See kernels/README.md.
"""

from moe_kernels.ffn import ACTIVATIONS, activate, choose_ffn, expert_ffn
from moe_kernels.implementation import IMPLEMENTATIONS, resolve_impl
from moe_kernels.permutation import permute, received_order, unpermute
from moe_kernels.recurring import recurring_size
from moe_kernels.routing import Routing, limit_capacity, route
from moe_kernels.top1 import GATE_SCALES, gate_scale_of, top1_moe_ffn

__all__ = [
    "ACTIVATIONS",
    "GATE_SCALES",
    "IMPLEMENTATIONS",
    "Routing",
    "activate",
    "choose_ffn",
    "expert_ffn",
    "gate_scale_of",
    "limit_capacity",
    "permute",
    "received_order",
    "recurring_size",
    "resolve_impl",
    "route",
    "top1_moe_ffn",
    "unpermute",
]
