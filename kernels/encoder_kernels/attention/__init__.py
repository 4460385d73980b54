"""Attention over packed sequences, made for short ones."""

from encoder_kernels.attention.function import LARGEST_HEAD, attend
from encoder_kernels.attention.plan import LARGEST_BLOCK, SequencePlan, plan_of

__all__ = ["LARGEST_BLOCK", "LARGEST_HEAD", "SequencePlan", "attend", "plan_of"]
