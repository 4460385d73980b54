"""Operators of an encoder's layers: attention for short sequences, dropout + residual + LayerNorm,
and query, key and value as one product.

Imports torch only; triton is imported by the first call that needs it. See kernels/README.md.
"""

from encoder_kernels.attention import LARGEST_BLOCK, LARGEST_HEAD, SequencePlan, attend, plan_of
from encoder_kernels.operators import OPERATORS
from encoder_kernels.projection import project
from encoder_kernels.residual_norm import LARGEST_WIDTH, dropout_residual_norm

__all__ = [
    "LARGEST_BLOCK",
    "LARGEST_HEAD",
    "LARGEST_WIDTH",
    "OPERATORS",
    "SequencePlan",
    "attend",
    "dropout_residual_norm",
    "plan_of",
    "project",
]
