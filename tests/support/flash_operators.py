"""torch's flash attention over sequence offsets runs on GPUs only: plain PyTorch in its place.

T tokens, H heads, d head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FORWARD, BACKWARD = "_flash_attention_forward", "_flash_attention_backward"


def sequences(ends, *tensors_THd):
    """Yield each sequence's part of the tensors, heads first."""
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield [x[start:stop].transpose(0, 1) for x in tensors_THd]


def together(pieces):
    return torch.cat([piece.transpose(0, 1) for piece in pieces])


def probabilities(q_HLd, k_HLd, scale, left, right):
    """Return attention's weights within a window of `left` and `right` tokens; None: all."""
    scores = scale * q_HLd @ k_HLd.transpose(-1, -2)
    if left is not None:
        place = torch.arange(scores.shape[-1])
        ahead = place - place[:, None]
        scores = scores.masked_fill((ahead < -left) | (ahead > right), float("-inf"))
    return torch.softmax(scores, dim=-1)


def forward(
    q,
    k,
    v,
    ends_q,
    ends_k,
    max_q,
    max_k,
    dropout,
    causal,
    debug,
    *,
    scale=None,
    window_size_left=None,
    window_size_right=None,
    **rest,
):
    assert ends_q is ends_k and ends_q.dtype == torch.int32 and not causal
    assert max_q == max_k == int(ends_q.diff().max())
    sides = (window_size_left, window_size_right)
    out = together(probabilities(a, b, scale, *sides) @ c for a, b, c in sequences(ends_q, q, k, v))
    return out, *(q.new_empty(0) for _ in range(4))


def backward(
    grad,
    q,
    k,
    v,
    out,
    lse,
    ends,
    _ends,
    max_q,
    max_k,
    dropout,
    causal,
    rng,
    unused,
    *,
    scale=None,
    window_size_left=None,
    window_size_right=None,
):
    assert torch.are_deterministic_algorithms_enabled()
    grads = []
    for a, b, c, d in sequences(ends, q, k, v, grad):
        weights = probabilities(a, b, scale, window_size_left, window_size_right)
        of_weights = d @ c.transpose(-1, -2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        grads.append(
            (of_scores @ b, of_scores.transpose(-1, -2) @ a, weights.transpose(-1, -2) @ d)
        )
    return tuple(together(kind) for kind in zip(*grads, strict=True))


@contextmanager
def flash_on_cpu() -> Iterator[None]:
    """Have torch's flash operators run on CPU tensors inside the block."""
    library = torch.library.Library("aten", "IMPL")
    library.impl(FORWARD, forward, "CPU")
    library.impl(BACKWARD, backward, "CPU")
    try:
        yield
    finally:
        library._destroy()
