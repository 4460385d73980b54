"""Attention over packed sequences without a pad: PyTorch's own flash kernel, 16 bits on a GPU.

The kernel is reached through the operators below `torch.nn.attention.varlen`, whose public function
has no dropout. Jagged nested tensors are the public way that has it, but a call of theirs spends
some milliseconds in Python; transformers' flash attention needs a package that is built for every
pair of torch and CUDA.

B sequences, T tokens of them all, H heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ds_moe_mtl.models.attention.heads import heads_alike
from ds_moe_mtl.models.attention.windows import window_of
from encoder_kernels.attention.flash import deterministic

FORWARD, BACKWARD = "_flash_attention_forward", "_flash_attention_backward"
LARGEST_HEAD = 256
OLDEST = (8, 0)
"""Compute capability from which on the kernel runs (Ampere)."""


@dataclass(frozen=True)
class PackedSequences:
    """Where the sequences of a batch lie: ends int32 [B + 1] on its device, from 0; the rest known
    to the host, which never waits for the device. tokens: T; longest: tokens of a sequence."""

    ends: torch.Tensor
    tokens: int
    longest: int


def packed_sequences(
    lengths: Sequence[int], device: torch.device, ends: torch.Tensor | None = None
) -> PackedSequences:
    """Return the plan of sequences of `lengths` tokens; ends: where they are on the device yet."""
    if ends is None:
        ends = torch.tensor([0, *lengths]).cumsum(0)
    return PackedSequences(ends.to(device, torch.int32), sum(lengths), max(lengths))


def why_not_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Return why the kernel cannot run; None where it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes 16 bits, not {dtype}"
    if device.type != "cuda":
        return f"it needs a GPU, not {device.type}"
    if head_size % 8 or head_size > LARGEST_HEAD:
        return f"heads of size {head_size}: it takes multiples of 8 up to {LARGEST_HEAD}"
    if not all(hasattr(torch.ops.aten, name) for name in (FORWARD, BACKWARD)):
        return f"torch {torch.__version__} has no operator {FORWARD}"
    if not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} was built without it"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]}; it needs 8.0"
    return None


def flash(
    module,
    query,
    key,
    value,
    attention_mask,
    *,
    scaling,
    packing,
    dropout=0.0,
    sliding_window=None,
    **kwargs,
):
    """Return attention's output [1, T, H, d] and no weights; query, key, value [1, H, T, d].

    Grouped keys and values have fewer heads. sliding_window: as window_of takes it.
    """
    key, value = heads_alike(query, key, value)
    window = window_of(sliding_window)
    assert query.shape[2] == packing.tokens, "tokens in no sequence: none exist on a GPU"
    # Squeezed and not indexed: the gradient of [0] is a tensor of zeros, and a copy into it.
    q_THd, k_THd, v_THd = (x.transpose(1, 2).squeeze(0).contiguous() for x in (query, key, value))
    return _Flash.apply(q_THd, k_THd, v_THd, packing, dropout, scaling, window)[None], None


class _Flash(torch.autograd.Function):
    """The operator pair. Its own gradient formula leaves to chance in which order a query's
    gradient is summed where a sequence is longer than one block of keys (128); here it is fixed."""

    @staticmethod
    def forward(ctx, q_THd, k_THd, v_THd, packing: PackedSequences, dropout, scale, window):
        ends, longest = packing.ends, packing.longest
        sides = {} if window is None else {"window_size_left": window, "window_size_right": window}
        out_THd, logsumexp, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(
            q_THd,
            k_THd,
            v_THd,
            ends,
            ends,
            longest,
            longest,
            dropout,
            False,
            False,
            scale=scale,
            **sides,
        )
        ctx.save_for_backward(q_THd, k_THd, v_THd, out_THd, logsumexp, rng_state, unused, ends)
        ctx.longest, ctx.dropout, ctx.scale, ctx.sides = longest, dropout, scale, sides
        return out_THd

    @staticmethod
    def backward(ctx, grad_THd):
        *saved, rng_state, unused, ends = ctx.saved_tensors
        with deterministic():
            grads = torch.ops.aten._flash_attention_backward(
                grad_THd.contiguous(),
                *saved,
                ends,
                ends,
                ctx.longest,
                ctx.longest,
                ctx.dropout,
                False,
                rng_state,
                unused,
                scale=ctx.scale,
                **ctx.sides,
            )
        return *grads, None, None, None, None
