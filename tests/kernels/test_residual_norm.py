"""dropout + residual + LayerNorm against float64, on the GPU or in Triton's interpreter.

T tokens, D hidden size.
"""

import pytest
import torch

from encoder_kernels import dropout_residual_norm
from encoder_kernels.residual_norm.launch import PROGRAMS
from encoder_kernels.residual_norm.reference import dropout_residual_norm_reference
from tests.kernels.layers import KERNEL_DEVICE
from tests.kernels.oracle import (
    DTYPES,
    assert_as_exact_as_the_reference,
    differentiated,
    normal,
)

NAMES = ("y", "grad x", "grad residual", "grad weight", "grad bias")
SEED = torch.tensor(987654321987654321)


def draw(tokens, width, dtype=torch.float32):
    """Return x, residual, weight and bias, and a gradient of the result."""
    shapes = ((tokens, width), (tokens, width), (width,), (width,), (tokens, width))
    *inputs, grad = (normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    return inputs, grad


def ours(dropout, seed=SEED):
    seed = seed.to(KERNEL_DEVICE)
    return lambda *x: dropout_residual_norm(*x, 1e-5, dropout, seed=seed, impl="triton")


def check(tokens, width, dtype, dropout):
    inputs, grad = draw(tokens, width, dtype)
    assert_as_exact_as_the_reference(
        NAMES,
        ours(dropout),
        lambda *x: dropout_residual_norm_reference(*x, 1e-5, dropout, SEED),
        inputs,
        grad,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(21, 384), (5, 768), (3, 1024), (7, 33)], ids=str)
def test_results_and_gradients_are_as_exact_as_plain_pytorchs(tokens, width, dtype):
    check(tokens, width, dtype, 0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_dropout_both_inputs_have_one_gradient(dtype):
    check(7, 33, dtype, 0.0)


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one(tokens):
    check(tokens, 17, torch.float32, 0.1)


def test_a_program_sums_the_gradients_of_many_rows(monkeypatch):
    monkeypatch.setattr("encoder_kernels.residual_norm.launch.PROGRAMS", 3)
    check(200, 24, torch.float32, 0.1)
    assert PROGRAMS > 3


def test_inputs_need_not_be_contiguous_nor_flat():
    inputs, grad = draw(12, 20)
    expected = differentiated(ours(0.1), inputs, grad, device=KERNEL_DEVICE)
    apart = [x.repeat_interleave(2, -1)[..., ::2] for x in inputs]
    apart[:2] = [x.view(3, 4, 20) for x in apart[:2]]
    found = differentiated(ours(0.1), apart, grad.view(3, 4, 20), device=KERNEL_DEVICE)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b.reshape(a.shape))


def test_uninitialised_memory_is_never_read():
    inputs, grad = draw(19, 33, torch.float16)
    expected = differentiated(ours(0.1), inputs, grad, device=KERNEL_DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = differentiated(ours(0.1), inputs, grad, device=KERNEL_DEVICE)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_backward_pass_drops_what_the_forward_pass_dropped():
    inputs, grad = draw(32, 64)
    inputs[1] = torch.zeros(32, 64)
    _, of_x, of_residual, _, _ = differentiated(ours(0.25), inputs, grad, device=KERNEL_DEVICE)
    dropped = of_x == 0
    sigma = (0.25 * 0.75 / dropped.numel()) ** 0.5
    assert abs(dropped.double().mean().item() - 0.25) < 5 * sigma
    torch.testing.assert_close(of_x[~dropped], of_residual[~dropped] / 0.75)
    other = differentiated(ours(0.25, SEED + 1), inputs, grad, device=KERNEL_DEVICE)[1]
    assert not torch.equal(other == 0, dropped)


def test_what_cannot_be_right_is_refused():
    (x, residual, weight, bias), _ = draw(4, 8)
    with pytest.raises(ValueError, match="must be"):
        dropout_residual_norm(x, residual[:3], weight, bias)
    with pytest.raises(ValueError, match="must be one type"):
        dropout_residual_norm(x, residual.half(), weight, bias)
    with pytest.raises(ValueError, match="dropout = -0.1"):
        dropout_residual_norm(x, residual, weight, bias, dropout=-0.1)
    (x, residual, weight, bias), _ = (
        [t.to(KERNEL_DEVICE) for t in part] if isinstance(part, list) else part
        for part in draw(1, 5000)
    )
    with pytest.raises(ValueError, match="rows are 5000 wide"):
        dropout_residual_norm(x, residual, weight, bias, impl="triton")
