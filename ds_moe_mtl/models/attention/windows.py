"""Attention within a window: a token sees the `window` tokens before it, itself, and as many after.

Long sequences are cut into blocks of queries, and each block meets the keys that it can see alone:
memory and time grow with the length, not with its square.

n sequences of a group, H heads, L tokens with pads, d head size, C blocks of c queries.
"""

from collections.abc import Callable

import torch
from torch import nn


def window_of(sliding_window: int | None) -> int | None:
    """Return how many tokens to each side are seen, by the keyword that transformers hands over.

    For encoders it is one more than that (transformers' flash attention takes it so). None: all.
    """
    return None if sliding_window is None else sliding_window - 1


def attend_within(
    attend: Callable,
    window: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Return attention's output [n, H, L, d] within a window, from query, key, value of that shape.

    attend: attention over all keys, with an additive bias. bias: [n, 1, 1, L], or None. A sequence
    of up to four windows is one block: there masks cost less than overlaps.
    """
    n, heads, length, size = query.shape
    block = length if length <= 4 * window else max(window, 1)
    blocks = -(-length // block)
    if blocks == 1:
        band = _band(query, length, length, window, first_key=0)
        if bias is not None:
            band = (bias + band).clamp(min=torch.finfo(band.dtype).min)
        return attend(query, key, value, band, scaling, dropout)
    filled = blocks * block
    seen = block + 2 * window
    query = nn.functional.pad(query, (0, 0, 0, filled - length))
    key, value = (
        nn.functional.pad(x, (0, 0, window, filled - length + window)) for x in (key, value)
    )
    if bias is None:
        bias = query.new_zeros(1, 1, 1, length)
    lowest = torch.finfo(bias.dtype).min
    bias = nn.functional.pad(bias, (window, filled - length + window), value=lowest)
    # [n, H, C * block, d] -> [n * C, H, block, d]; keys overlap between blocks.
    queries = query.view(n, heads, blocks, block, size).transpose(1, 2).flatten(0, 1)
    keys, values = (
        x.unfold(2, seen, block).permute(0, 2, 1, 4, 3).flatten(0, 1) for x in (key, value)
    )
    biases = bias.unfold(3, seen, block).permute(0, 3, 1, 2, 4)  # [n or 1, C, 1, 1, seen]
    biases = biases.expand(n, -1, -1, -1, -1).flatten(0, 1)
    band = _band(query, block, seen, window, first_key=-window)
    out = attend(queries, keys, values, (biases + band).clamp(min=lowest), scaling, dropout)
    out = out.view(n, blocks, heads, block, size).transpose(1, 2)
    return out.reshape(n, heads, filled, size)[:, :, :length]


def _band(like: torch.Tensor, queries: int, keys: int, window: int, first_key: int):
    """Return a bias [queries, keys]: 0 within the window, the type's minimum beyond it."""
    query = torch.arange(queries, device=like.device)[:, None]
    key = torch.arange(first_key, first_key + keys, device=like.device)[None]
    band = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
    return band.masked_fill_((query - key).abs() > window, torch.finfo(like.dtype).min)
