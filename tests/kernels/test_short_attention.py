"""Attention for short packed sequences against float64, on the GPU or in Triton's interpreter.

T tokens, H heads, d head size.
"""

import pytest
import torch

from encoder_kernels import attend, plan_of
from encoder_kernels.attention.function import Attention
from encoder_kernels.attention.reference import attend_reference
from tests.kernels.layers import KERNEL_DEVICE
from tests.kernels.oracle import (
    DTYPES,
    assert_as_exact_as_the_reference,
    differentiated,
    normal,
)
from tests.support.flash_operators import flash_on_cpu

NAMES = ("out", "grad q", "grad k", "grad v")
SEED = torch.tensor(1234567890123456789)
# Every block, odd lengths, one token.
LENGTHS = (128, 65, 64, 33, 17, 3, 1)


def draw(lengths, size, dtype=torch.float32, heads=2, beyond=0):
    """Return query, key and value, and a gradient of the output."""
    shape = (sum(lengths) + beyond, heads, size)
    return *[[normal(*shape, seed=i, dtype=dtype) for i in range(3)]], normal(
        *shape, seed=3, dtype=dtype
    )


def ours(lengths, dropout=0.0, seed=SEED):
    """Return attention by the kernels over sequences of these lengths."""
    plan = plan_of(lengths, torch.device(KERNEL_DEVICE))
    seed = seed.to(KERNEL_DEVICE)

    def attention(q_THd, k_THd, v_THd):
        scale = q_THd.shape[2] ** -0.5
        return attend(q_THd, k_THd, v_THd, plan, scale, dropout, seed=seed, impl="triton")

    return attention


def plain(lengths, dropout=0.0):
    """Return attention by the reference."""
    ends = torch.tensor([0, *lengths]).cumsum(0)

    def attention(q_THd, k_THd, v_THd):
        scale = q_THd.shape[2] ** -0.5
        return attend_reference(q_THd, k_THd, v_THd, ends, scale, dropout, SEED)

    return attention


def check(lengths, size, dtype, dropout, **options):
    inputs, grad = draw(lengths, size, dtype, **options)
    assert_as_exact_as_the_reference(
        NAMES, ours(lengths, dropout), plain(lengths, dropout), inputs, grad, intermediate_stores=2
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_and_gradients_are_as_exact_as_plain_pytorchs(dtype):
    check(LENGTHS, 32, dtype, dropout=0.1)


@pytest.mark.parametrize("size", [20, 64, 128])
def test_heads_of_any_size(size):
    check((40, 9), size, torch.float16, dropout=0.0)


@pytest.mark.parametrize("lengths", [(1,), (5, 5, 5)], ids=str)
def test_one_token_and_like_lengths(lengths):
    check(lengths, 32, torch.float32, dropout=0.0, heads=3)


def test_no_sequence_gives_nothing():
    inputs, grad = draw((), 32)
    for value in differentiated(ours(()), inputs, grad, device=KERNEL_DEVICE):
        assert value.shape == (0, 2, 32)


def test_tokens_in_no_sequence_give_and_get_nothing():
    inputs, grad = draw((7, 2), 32, beyond=4)
    for value in differentiated(ours((7, 2)), inputs, grad, device=KERNEL_DEVICE):
        assert value[:9].abs().min() > 0 and value[9:].abs().max() == 0
    check((7, 2), 32, torch.float32, dropout=0.1, beyond=4)


def test_uninitialised_memory_is_never_read():
    inputs, grad = draw((20, 3), 20, torch.float16, beyond=2)
    expected = differentiated(ours((20, 3), 0.1), inputs, grad, device=KERNEL_DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = differentiated(ours((20, 3), 0.1), inputs, grad, device=KERNEL_DEVICE)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_dropout_follows_the_seed_and_the_forward_pass_in_the_backward_one():
    """Value and gradient are such that the output is the kept weights, a column's sum dv."""
    zero, identity = torch.zeros(64, 1, 64), torch.eye(64)[:, None]
    attention, again, other = (ours((64,), 0.25, seed) for seed in (SEED, SEED, SEED + 1))
    inputs = (zero, zero, identity)
    out, _, _, of_value = differentiated(
        attention, inputs, torch.ones_like(zero), None, KERNEL_DEVICE
    )
    assert torch.equal(out, differentiated(again, inputs, zero, None, KERNEL_DEVICE)[0])
    assert not torch.equal(out, differentiated(other, inputs, zero, None, KERNEL_DEVICE)[0])
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 64 / 0.75))
    sigma = (0.25 * 0.75 / out.numel()) ** 0.5
    assert abs((out == 0).double().mean().item() - 0.25) < 5 * sigma
    torch.testing.assert_close(of_value[:, 0, 0], out[:, 0].sum(0))


def test_without_a_seed_torchs_generator_decides():
    inputs, _ = draw((9,), 32)
    inputs = [x.to(KERNEL_DEVICE) for x in inputs]
    plan = plan_of((9,), torch.device(KERNEL_DEVICE))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(attend(*inputs, plan, 0.2, 0.5, impl="triton"))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_views_of_one_product_are_read_where_they_are_and_gradients_lie_together():
    q_T3Hd, grad = normal(12, 3, 2, 32, seed=0, dtype=torch.float32), draw((12,), 32)[1]
    apart = [x.contiguous() for x in q_T3Hd.unbind(1)]
    expected = differentiated(ours((12,)), apart, grad, device=KERNEL_DEVICE)
    views = [x.detach().requires_grad_() for x in q_T3Hd.to(KERNEL_DEVICE).unbind(1)]
    out = ours((12,))(*views)
    grads = torch.autograd.grad(out, views, grad.to(KERNEL_DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(expected, (out, *grads), strict=True))
    assert len({x.untyped_storage().data_ptr() for x in grads}) == 1


@pytest.mark.skipif(KERNEL_DEVICE == "cuda", reason="flash itself runs there: tests/gpu")
def test_long_sequences_go_to_torchs_flash_and_the_rest_to_ours():
    lengths = (200, 130, 20, 4)
    inputs, grad = draw(lengths, 32, heads=1)
    plan = plan_of(lengths, torch.device("cpu"))
    assert (plan.long_sequences, plan.long_tokens, len(plan.buckets)) == (2, 330, 2)
    expected = differentiated(plain(lengths), inputs, grad)
    with flash_on_cpu():
        found = differentiated(
            lambda *x: Attention.apply(*x, None, plan, 32**-0.5, 0.0), inputs, grad
        )
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_what_cannot_be_right_is_refused():
    (q, k, v), _ = draw((4,), 32)
    plan = plan_of((4,), torch.device("cpu"))
    with pytest.raises(ValueError, match="longest sequence first"):
        plan_of((3, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"one shape \[T, H, d\]"):
        attend(q, k[:3], v, plan, 1.0)
    with pytest.raises(ValueError, match="the plan has 4 tokens, the query 3"):
        attend(q[:3], k[:3], v[:3], plan, 1.0)
    with pytest.raises(ValueError, match="dropout = 1"):
        attend(q, k, v, plan, 1.0, 1.0)
    with pytest.raises(ValueError, match="beyond 128 tokens"):
        (q, k, v), _ = draw((129,), 32)
        attend(
            *(x.to(KERNEL_DEVICE) for x in (q, k, v)), plan_of((129,), q.device), 1.0, impl="triton"
        )
    with pytest.raises(ValueError, match="heads of size 160"):
        (q, k, v), _ = draw((4,), 160)
        attend(*(x.to(KERNEL_DEVICE) for x in (q, k, v)), plan, 1.0, impl="triton")
