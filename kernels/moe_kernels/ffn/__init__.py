"""The experts' feed-forward networks, each on its own block of rows."""

from moe_kernels.ffn.activation import ACTIVATIONS, activate
from moe_kernels.ffn.choice import choose_ffn
from moe_kernels.ffn.function import expert_ffn

__all__ = ["ACTIVATIONS", "activate", "choose_ffn", "expert_ffn"]
