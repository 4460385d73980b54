"""Which attention runs over packed sequences, and the plan that it needs.

Registered with transformers' attention interface, so that the encoder's own weights and code run.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ds_moe_mtl.data.batch import attention_groups
from ds_moe_mtl.models.attention.flash import (
    PackedSequences,
    flash,
    packed_sequences,
    why_not_flash,
)
from ds_moe_mtl.models.attention.padded import AttentionGroup, eager, groups_to_pad, padded, sdpa
from ds_moe_mtl.models.attention.short import short
from ds_moe_mtl.models.kernels import kernels_on
from encoder_kernels import SequencePlan, plan_of

PACKED_EAGER = "ds_moe_mtl_packed_eager"
PACKED_SDPA = "ds_moe_mtl_packed_sdpa"
PACKED_FLASH = "ds_moe_mtl_packed_varlen"  # transformers reads a meaning into the word flash
PACKED_SHORT = "ds_moe_mtl_packed_short"

UNPADDED = (PACKED_FLASH, PACKED_SHORT)
"""Attentions that know no pads, and need no groups of sequences."""

Packing = list[AttentionGroup] | PackedSequences | SequencePlan
"""What an attention function gets as `packing`: groups to pad, or where the sequences lie."""


def register_packed_attention() -> None:
    """Make the packed attentions known to transformers; calling it again changes nothing."""
    functions = {PACKED_EAGER: padded(eager), PACKED_SDPA: padded(sdpa)}
    functions |= {PACKED_FLASH: flash, PACKED_SHORT: short}
    for name, function in functions.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask)


def packed_attention(
    device: torch.device, dtype: torch.dtype, head_size: int, kernels: str = "auto"
) -> str:
    """Return the attention to run: ours for short sequences where `kernels`
    (train.encoder_kernels) has it run, flash where that can, eager in 16 bits on a CPU, else SDPA.

    The first two know no pads; the others pad within groups of like lengths. On CPU in bfloat16
    eager was 1.6 times as fast as SDPA for MiniLM; in float32 SDPA led by 3%.
    """
    if kernels_on(kernels, device, dtype, head_size).attention:
        return PACKED_SHORT
    if why_not_flash(device, dtype, head_size) is None:
        return PACKED_FLASH
    if device.type == "cpu" and dtype != torch.float32:
        return PACKED_EAGER
    return PACKED_SDPA


def attention_plan(
    name: str,
    lengths: Sequence[int],
    groups: Sequence[tuple[int, int]] | None,
    device: torch.device,
    dtype: torch.dtype,
    ends: torch.Tensor | None = None,
) -> Packing:
    """Return what the attention `name` needs to know of sequences of `lengths` tokens.

    groups: sequences [first, last) to pad together, where that has been chosen (longest first);
    ends: as in packed_sequences.
    """
    if name == PACKED_FLASH:
        return packed_sequences(lengths, device, ends)
    if name == PACKED_SHORT:
        return plan_of(lengths, device, ends)
    if groups is None:
        groups = attention_groups(np.array(lengths))
    return groups_to_pad(list(lengths), groups, device, dtype)


def _no_mask(*args, **kwargs) -> None:
    """Packed attention masks by its plan; transformers builds no mask of its own."""
    return None
