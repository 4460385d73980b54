"""torch's flash attention over packed sequences, which needs a GPU and 16 bits.

The operators below `torch.nn.attention.varlen`, which has no dropout. T tokens, B sequences,
H heads, d head size; ends int32 [B + 1]; longest: tokens of the longest sequence.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def flash_forward(
    q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, ends: Tensor, longest: int, dropout: float,
    scale: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Return (out_THd, what flash_backward wants of this pass)."""
    out_THd, logsumexp, rng_state, unused, _ = _ATEN._flash_attention_forward(
        q_THd, k_THd, v_THd, ends, ends, longest, longest, dropout, False, False, scale=scale
    )
    return out_THd, (out_THd, logsumexp, rng_state, unused)


def flash_backward(
    grad_THd: Tensor, q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, saved: tuple[Tensor, ...],
    ends: Tensor, longest: int, dropout: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v, each sum in one order."""
    out_THd, logsumexp, rng_state, unused = saved
    with deterministic():
        return _ATEN._flash_attention_backward(
            grad_THd, q_THd, k_THd, v_THd, out_THd, logsumexp, ends, ends, longest, longest,
            dropout, False, rng_state, unused, scale=scale,
        )  # fmt: skip


@contextmanager
def deterministic() -> Iterator[None]:
    """Have operators called in the block take their repeatable form: flash reads torch's global
    flag. Results are not filled beforehand, since all of them are written."""
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill
