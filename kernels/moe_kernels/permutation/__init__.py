"""Moving token rows into expert order (a send buffer) and back."""

from moe_kernels.permutation.function import permute, received_order, unpermute

__all__ = ["permute", "received_order", "unpermute"]
