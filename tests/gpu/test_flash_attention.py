"""Packed attention by torch's flash kernel: against float64, its dropout, its repeatability.

B sequences, T tokens of them all, H heads, d head size.
"""

import pytest
import torch

from ds_moe_mtl.data.batch import attention_groups
from ds_moe_mtl.models.attention.choice import (
    PACKED_FLASH,
    PACKED_SDPA,
    attention_plan,
    packed_attention,
)
from ds_moe_mtl.models.attention.flash import flash
from ds_moe_mtl.models.attention.padded import eager, padded, sdpa
from tests.support.gpu import DEVICE, HERE, assert_as_good, needs_gpu

pytestmark = [needs_gpu, pytest.mark.skipif(not HERE, reason="the kernel runs on GPUs only")]

HEADS = 12
LENGTHS = {
    "one token": [1],
    "one sequence": [77],
    "like glue": [128, 127, 96, 64, 63, 33, 32, 31, 17, 9, 5, 5, 3, 2, 1],
    "longer than a block": [512, 300, 129, 128, 1],
}


def draw(lengths: list[int], size: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Return query, key, value and a gradient of the output, [1, H, T, d] and [1, T, H, d]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, HEADS, sum(lengths), size)
    drawn = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(4)]
    return [*drawn[:3], drawn[3].transpose(1, 2)]


def attended(function, tensors, packing, dropout: float = 0.0, **more) -> list[torch.Tensor]:
    """Return the output and the gradients of query, key and value. more: further keywords."""
    *leaves, grad = (x.detach().clone() for x in tensors)
    leaves = [x.requires_grad_() for x in leaves]
    scaling = leaves[0].shape[-1] ** -0.5
    out, _ = function(
        None, *leaves, None, scaling=scaling, dropout=dropout, packing=packing, **more
    )
    return [out, *torch.autograd.grad(out, leaves, grad)]


def plan(name: str, lengths: list[int], dtype: torch.dtype):
    return attention_plan(name, lengths, None, DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("case", LENGTHS)
def test_output_and_gradients_are_as_good_as_those_of_padded_attention(case, size, dtype):
    lengths = LENGTHS[case]
    tensors = draw(lengths, size, dtype)
    groups = plan(PACKED_SDPA, lengths, dtype)
    exact = attended(padded(eager), [x.double() for x in tensors], plan_in_double(lengths))
    theirs = attended(padded(eager), tensors, groups)
    ours = attended(flash, tensors, plan(PACKED_FLASH, lengths, dtype))
    for what, a, b, c in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, strict=True):
        assert a.dtype == dtype and a.shape == c.shape
        if len(set(lengths)) == 1 and lengths[0] == 1 and what in ("dq", "dk"):
            assert float(a.abs().max()) < 1e-2  # a softmax over one key has no gradient
        else:
            assert_as_good(a, b, c, f"{case}, {what}")


@pytest.mark.parametrize("window", [1, 17, 65])
def test_within_a_window_too_with_grouped_heads(window):
    lengths = LENGTHS["longer than a block"]
    query, key, value, grad = draw(lengths, 64, torch.bfloat16)
    tensors = [query, key[:, :4], value[:, :4], grad]
    groups, more = plan(PACKED_SDPA, lengths, torch.bfloat16), {"sliding_window": window}
    exact = attended(padded(eager), [x.double() for x in tensors], plan_in_double(lengths), **more)
    theirs = attended(padded(eager), tensors, groups, **more)
    ours = attended(flash, tensors, plan(PACKED_FLASH, lengths, torch.bfloat16), **more)
    for what, a, b, c in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, strict=True):
        if window > 1 or what in ("out", "dv"):  # one key: no gradient of query and key
            assert_as_good(a, b, c, f"window {window}, {what}")


def plan_in_double(lengths: list[int]):
    return plan(PACKED_SDPA, lengths, torch.float64)


def test_the_groups_that_sdpa_pads_give_the_same_in_float32():
    lengths = LENGTHS["like glue"]
    tensors = draw(lengths, 32, torch.float32)
    groups = plan(PACKED_SDPA, lengths, torch.float32)
    assert len(groups) == len(attention_groups(torch.tensor(lengths).numpy()))
    exact = attended(padded(eager), [x.double() for x in tensors], plan_in_double(lengths))
    for ours, reference in zip(attended(padded(sdpa), tensors, groups), exact, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5)


def weights_under_dropout(seed: int) -> list[torch.Tensor]:
    """Return attention's weights [1, T, H, 64] under dropout, and the value's gradient for ones.

    Query and key are 0 and the value is the identity in every sequence of 64 tokens: the output
    is the row of weights itself, 1 / 64 / 0.9 where it is kept.
    """
    torch.manual_seed(seed)
    count, length = 64, 64
    lengths = [length] * count
    zero = torch.zeros(1, HEADS, count * length, length, device=DEVICE, dtype=torch.bfloat16)
    identity = torch.eye(length, device=DEVICE, dtype=torch.bfloat16).repeat(count, 1)
    value = identity.expand(1, HEADS, -1, -1).contiguous()
    grad = torch.ones_like(value).transpose(1, 2)
    packing = plan(PACKED_FLASH, lengths, torch.bfloat16)
    out, _, _, of_value = attended(flash, [zero, zero, value, grad], packing, 0.1)
    return [out, of_value]


def test_dropout_drops_a_tenth_and_scales_the_rest():
    out, of_value = weights_under_dropout(0)
    dropped = float((out == 0).double().mean())
    sigma = (0.1 * 0.9 / out.numel()) ** 0.5
    print(f"dropped {dropped:.5f}")
    assert abs(dropped - 0.1) < 1 / 256 + 6 * sigma  # the kernel draws 8 bits an element
    kept = out[out != 0].float()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 64 / 0.9), rtol=2**-7, atol=0)
    # The backward pass drops what the forward pass did: a key's gradient is its column's sum.
    columns = out.reshape(64, 64, HEADS, 64).float().sum(dim=1)  # [B, H, key]
    found = of_value.reshape(HEADS, 64, 64, 64)[..., 0].transpose(0, 1).float()
    torch.testing.assert_close(found, columns, rtol=2**-6, atol=2**-8)


def test_dropout_is_drawn_from_the_seed():
    first, again, other = (weights_under_dropout(seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_long_sequences_have_repeatable_gradients():
    lengths = [512, 512, 300, 129]
    tensors = draw(lengths, 64, torch.bfloat16)
    packing = plan(PACKED_FLASH, lengths, torch.bfloat16)
    first = attended(flash, tensors, packing)
    for _ in range(5):
        for a, b in zip(first, attended(flash, tensors, packing), strict=True):
            assert torch.equal(a, b)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_kernel_is_what_16_bits_run_on_this_gpu():
    for dtype in (torch.bfloat16, torch.float16):
        assert packed_attention(DEVICE, dtype, 32) == PACKED_FLASH
    assert packed_attention(DEVICE, torch.float32, 32) == PACKED_SDPA
