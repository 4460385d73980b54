"""The experts' feed-forward networks, each on its own block of rows."""

from moe_kernels.ffn.function import expert_ffn
from moe_kernels.ffn.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "expert_ffn"]
