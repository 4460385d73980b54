import pytest
import torch
from torch import nn

from ds_moe_mtl.models.dropout import Dropout, dropout, replace_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_of_the_four_elements_of_a_draw_is_dropped_with_probability_p(dtype, p):
    torch.manual_seed(0)
    draws = 100_000
    y = dropout(torch.ones(4 * draws, dtype=dtype), p).view(draws, 4)
    dropped = (y == 0).double()
    error = (p * (1 - p) / draws) ** 0.5
    assert torch.all((dropped.mean(0) - p).abs() < 5 * error)
    # Neighbours are independent: their correlation is 0 within its own error.
    assert torch.all((torch.corrcoef(dropped.T) - torch.eye(4)).abs() < 5 / draws**0.5)
    kept = y[y != 0]
    torch.testing.assert_close(kept.double().mean().item(), 1 / (1 - p), rtol=4e-3, atol=0)
    assert len(kept.unique()) == 1


def test_the_gradient_has_the_mask_of_the_output():
    x = torch.randn(7, 13, requires_grad=True)
    y = dropout(x, 0.3)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 0, 3)])
def test_any_number_of_elements(shape):
    assert dropout(torch.ones(shape), 0.5).shape == shape


def test_limits_and_evaluation():
    x = torch.randn(5, 4)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_the_seed_fixes_the_mask():
    torch.manual_seed(3)
    first = dropout(torch.ones(99), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(torch.ones(99), 0.5))


def test_replace_dropout_keeps_p_and_reaches_every_level():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
    model[1].eval()
    replace_dropout(model)
    replaced = [m for m in model.modules() if isinstance(m, Dropout)]
    assert [(m.p, m.training) for m in replaced] == [(0.2, True), (0.3, False)]
