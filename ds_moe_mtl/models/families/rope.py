"""Rotary positions: which kinds depend on a token's own place alone, in the precision they need."""

from functools import partial

from torch import nn

FIXED_TYPES = ("default", "linear", "yarn", "llama3", "proportional")
"""transformers' rope_type whose frequencies are fixed. The others, dynamic and longrope, choose
them by the largest position of a batch."""


def check_rope(config) -> None:
    """Raise ValueError, one line, for rotary positions that depend on what else is in a batch."""
    parameters = getattr(config, "rope_parameters", None) or {}
    rows = (parameters,) if "rope_type" in parameters else parameters.values()
    for row in rows:
        kind = row.get("rope_type", "default") if isinstance(row, dict) else "default"
        if kind not in FIXED_TYPES:
            raise ValueError(
                f"its rope_type is {kind}: where a token stands would depend on the longest "
                f"sequence beside it; allowed: {', '.join(FIXED_TYPES)}"
            )


def keep_rope_exact(model: nn.Module) -> None:
    """Have a model's rotary positions keep their frequencies in float32 when it is cast.

    In bfloat16 a frequency has 8 bits: at position 1,000 its angle would be off by whole radians.
    """
    for module in model.modules():
        if any(name.endswith("inv_freq") for name in module._buffers):
            module._apply = partial(_apply_but_cast, module)


def _apply_but_cast(rotary: nn.Module, function, recurse: bool = True) -> nn.Module:
    """Do as nn.Module._apply to a module of buffers alone, which keep their types."""
    for name, buffer in rotary._buffers.items():
        if buffer is not None:
            applied = function(buffer)
            same = applied.dtype == buffer.dtype
            rotary._buffers[name] = applied if same else buffer.to(applied.device)
    return rotary
