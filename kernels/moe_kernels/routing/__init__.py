"""Top-1 routing: which expert each token goes to, with what probability, and in which order."""

from moe_kernels.routing.function import route
from moe_kernels.routing.types import Routing, limit_capacity

__all__ = ["Routing", "limit_capacity", "route"]
