"""Attention in groups of like lengths: pads exist inside attention only, within a group.

T real tokens, H heads, d head size; a group has n sequences padded to its longest, L tokens.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ds_moe_mtl.models.attention.heads import heads_alike
from ds_moe_mtl.models.attention.windows import attend_within, window_of
from ds_moe_mtl.models.dropout import dropout as drop
from moe_kernels import recurring_size

# recurring_size's step and sizes an octave. Our choice: about 200 shapes for GLUE, whose padding
# stays under 25% of the places (measured: 23% with them, 18% without).
_SEQUENCES = (1, 8)
_LENGTHS = (4, 16)


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences of tokens [start, stop) that attention pads together.

    rows [n * L]: the token of each padded place (a sequence's first token stands in for its pads).
    places [stop - start]: the padded place of each token. bias [n, 1, 1, L]: 0, or the dtype's
    minimum at pads; None where all lengths are equal (then rows and places are None too).
    """

    start: int
    stop: int
    sequences: int
    length: int
    rows: torch.Tensor | None = None
    places: torch.Tensor | None = None
    bias: torch.Tensor | None = None


def groups_to_pad(
    lengths: list[int], groups: list[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> list[AttentionGroup]:
    """Return the padding plan for sequences of `lengths` tokens, grouped by [first, last).

    On a CPU in 16 bits both sides of a group are sizes that come again: pads, and sequences that
    are all pads, fill it up.
    """
    plan, start = [], 0
    for first, last in groups:
        sizes = lengths[first:last]
        stop, longest = start + sum(sizes), max(sizes)
        rows = recurring_size(len(sizes), device, dtype, *_SEQUENCES)
        length = recurring_size(longest, device, dtype, *_LENGTHS)
        if min(sizes) == length and len(sizes) == rows:
            plan.append(AttentionGroup(start, stop, rows, length))
        else:
            sizes = sizes + [0] * (rows - len(sizes))
            plan.append(_padded_group(sizes, start, stop, length, device, dtype))
        start = stop
    return plan


def _padded_group(
    sizes: list[int], start: int, stop: int, longest: int, device: torch.device, dtype: torch.dtype
) -> AttentionGroup:
    size_N1 = torch.tensor(sizes)[:, None]
    place_1L = torch.arange(longest)[None, :]
    real_NL = place_1L < size_N1
    first_N1 = (size_N1.cumsum(dim=0) - size_N1).clamp(max=stop - start - 1)
    rows = (first_N1 + place_1L.where(real_NL, torch.zeros_like(place_1L))).reshape(-1)
    bias = torch.zeros(real_NL.shape, dtype=dtype).masked_fill_(~real_NL, torch.finfo(dtype).min)
    return AttentionGroup(
        start,
        stop,
        len(sizes),
        longest,
        rows.to(device),
        real_NL.reshape(-1).nonzero().squeeze(1).to(device),
        bias[:, None, None, :].to(device),
    )


class _Pad(torch.autograd.Function):
    """Gathers tokens into padded places; the gradient of a pad's copy is dropped (it is 0)."""

    @staticmethod
    def forward(ctx, x_TD, rows, places):
        ctx.save_for_backward(places)
        return x_TD.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _Unpad(torch.autograd.Function):
    """Gathers the real tokens out of padded places; a pad's gradient is 0."""

    @staticmethod
    def forward(ctx, x, places):
        ctx.save_for_backward(places)
        ctx.padded = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        out = grad.new_zeros((ctx.padded, *grad.shape[1:]))
        return out.index_copy_(0, places, grad), None


def eager(query, key, value, bias, scaling, dropout):
    """Return attention's output [n, H, L, d], by two products and a softmax."""
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    weights = drop(torch.softmax(scores, dim=-1), dropout)
    return torch.matmul(weights, value)


def sdpa(query, key, value, bias, scaling, dropout):
    """Return attention's output [n, H, L, d], by PyTorch's own."""
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
    )


def padded(attend):
    """Return transformers' attention function that runs `attend` on each group of a plan."""

    def attention(
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
        _, heads, tokens, size = query.shape
        beyond = tokens - (packing[-1].stop if packing else 0)
        sizes = [group.stop - group.start for group in packing] + [beyond]
        # Split and not sliced: a slice's gradient is a whole tensor of zeros, added to the others'.
        parts = [
            x.transpose(1, 2).reshape(tokens, heads * size).split(sizes)
            for x in (query, key, value)
        ]
        outputs = []
        for group, *of_group in zip(packing, *parts, strict=False):
            padded = []
            for x in of_group:
                if group.rows is not None:
                    x = _Pad.apply(x, group.rows, group.places)
                padded.append(x.view(group.sequences, group.length, heads, size).transpose(1, 2))
            if window is None or group.length <= window + 1:
                out = attend(*padded, group.bias, scaling, dropout)
            else:
                out = attend_within(attend, window, *padded, group.bias, scaling, dropout)
            out = out.transpose(1, 2).reshape(-1, heads * size)
            outputs.append(out if group.places is None else _Unpad.apply(out, group.places))
        if beyond:
            outputs.append(value.new_zeros(beyond, heads * size))
        out_TD = torch.cat(outputs)
        return out_TD.view(1, tokens, heads, size), None

    return attention
