"""Attention within a window is dense attention under a band; grouped heads are repeated ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_moe_mtl.models.attention.heads import heads_alike
from ds_moe_mtl.models.attention.padded import eager, sdpa
from ds_moe_mtl.models.attention.windows import attend_within, window_of


def dense(query, key, value, bias, scaling, window):
    """Return attention under a band by its definition, in the inputs' type."""
    place = torch.arange(query.shape[2])
    seen = (place[:, None] - place).abs() <= window
    scores = query @ key.transpose(-1, -2) * scaling
    scores = scores if bias is None else scores + bias
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 40),
    window=st.integers(0, 9),
    padded=st.booleans(),
    attend=st.sampled_from([eager, sdpa]),
    seed=st.integers(0, 99),
)
def test_it_is_dense_attention_under_a_band_with_its_gradients(
    length, window, padded, attend, seed
):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(3, 2, length, 4, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = [draw().requires_grad_() for _ in range(3)]
    bias, real = None, torch.ones(3, length, dtype=torch.bool)
    if padded:
        sizes = torch.randint(1, length + 1, (3, 1), generator=generator)
        real = torch.arange(length) < sizes
        bias = torch.zeros(3, length, dtype=torch.float64)
        bias = bias.masked_fill(~real, torch.finfo(torch.float64).min)[:, None, None]
    found = attend_within(attend, window, *inputs, bias, 0.5, 0.0)
    expected = dense(*inputs, bias, 0.5, window)
    real_BHL = real[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(found[real_BHL], expected[real_BHL], rtol=1e-12, atol=1e-12)
    weights = torch.randn(found[real_BHL].shape, generator=generator, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((out[real_BHL] * weights).sum(), inputs) for out in (found, expected)
    )
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, their, rtol=1e-10, atol=1e-10)


def test_memory_grows_with_the_length_and_not_with_its_square():
    query = torch.zeros(1, 1, 8_192, 4)
    largest = []

    def attend(q, k, v, bias, scaling, dropout):
        largest.append(max(q.numel(), k.numel(), bias.numel()))
        return q

    attend_within(attend, 64, query, query, query, None, 1.0, 0.0)
    assert largest[0] < 8_192 * 4 * 64  # the scores of all pairs: 8,192 * 8,192


def test_the_keyword_is_one_more_than_what_is_seen_to_a_side():
    assert window_of(None) is None and window_of(65) == 64


def test_grouped_heads_are_transformers_repeated_ones():
    from transformers.models.eurobert.modeling_eurobert import repeat_kv

    key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    found = heads_alike(torch.zeros(1, 6, 5, 4), key, value)
    assert all(torch.equal(a, repeat_kv(b, 3)) for a, b in zip(found, (key, value), strict=True))
    with pytest.raises(ValueError, match="5 heads of queries.*2 of keys"):
        heads_alike(torch.zeros(1, 5, 5, 4), key, value)
