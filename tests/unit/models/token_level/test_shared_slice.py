"""A shared slice against the dense FFN, and against a float64 loop over tokens."""

import copy

import pytest
import torch
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.models.token_level.shared_slice import join_ffn, shared_neurons, split_ffn
from tests.support.ffn_forms import FORMS

HIDDEN, INNER, SHARE, SHARED = 16, 32, 0.75, 24


def layer_of(differ=0.3, share=SHARE, num_experts=4, form=("gelu", True), **options):
    torch.manual_seed(0)
    dense = FeedForward(HIDDEN, INNER, form[0], bias=form[1])
    options = {"gate_scale": "preserve", **options}
    layer = MoELayer(HIDDEN, dense, RoutingOptions(num_experts, 3, shared_share=share, **options))
    nn.init.normal_(layer.gate.wg.weight)
    for parameter in layer.experts.parameters():
        parameter.data += differ * torch.randn_like(parameter)
    return dense, layer


def inputs():
    return torch.randn(5, 7, HIDDEN, generator=torch.Generator().manual_seed(3)), torch.arange(
        5
    ) % 3


@pytest.mark.parametrize(
    ("share", "inner", "neurons"),
    [
        (0.75, 1536, 1152),
        (0.5, 3072, 1536),
        (0.7, 1536, 1088),  # 1075.2: 16.8 x 64
        (0.99, 1536, 1520),  # the nearest of 64 is all of them; 190.1 x 8
        (0.75, 64, 48),
        (0.0, 64, 0),
    ],
)
def test_the_slice_is_the_nearest_multiple_that_leaves_both_parts(share, inner, neurons):
    assert shared_neurons(share, inner) == neurons


@pytest.mark.parametrize(("share", "inner"), [(0.001, 64), (0.99, 64), (0.5, 8)])
def test_a_share_without_neurons_on_both_sides_is_refused(share, inner):
    with pytest.raises(ValueError, match="moe.shared_share = .* allowed: a share that leaves"):
        shared_neurons(share, inner)


@pytest.mark.parametrize(("activation", "bias"), FORMS)
def test_both_parts_are_the_ffn_and_join_to_it_again(activation, bias):
    torch.manual_seed(1)
    dense = FeedForward(HIDDEN, INNER, activation, dropout=0.1, bias=bias).double().eval()
    x = inputs()[0].double()
    shared, rest = split_ffn(dense, SHARE)
    assert (shared.inner, rest.inner) == (SHARED, INNER - SHARED)
    assert (shared.dropout, rest.dropout) == (0.0, 0.1)
    torch.testing.assert_close(shared(x) + rest(x), dense(x), rtol=1e-13, atol=1e-13)
    joined = join_ffn(shared, rest).state_dict()
    assert joined.keys() == dense.state_dict().keys()
    assert all(torch.equal(joined[key], tensor) for key, tensor in dense.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_experts", [1, 4])
def test_copies_with_preserve_are_the_dense_layer_at_step_0(num_experts, form):
    dense, layer = layer_of(differ=0.0, num_experts=num_experts, form=form)
    x, ids = inputs()
    torch.testing.assert_close(layer(x, gate_ids=ids)[0], dense(x), rtol=1e-6, atol=1e-6)


def test_a_token_passes_as_many_neurons_as_in_the_dense_ffn():
    dense, layer = layer_of()
    assert layer.shared.inner + layer.experts[0].inner == dense.inner


@pytest.mark.parametrize("form", [("gelu", True), ("geglu", False), ("swiglu", True)])
@pytest.mark.parametrize("gate_scale", ["paper", "preserve"])
def test_output_and_gradients_equal_a_float64_loop_over_tokens(gate_scale, form):
    _, layer = layer_of(gate_scale=gate_scale, form=form)
    x, ids = inputs()
    mask = torch.ones(5, 7)
    mask[3, 2:] = 0
    exact = copy.deepcopy(layer).double()
    x.requires_grad_()
    y = layer(x, gate_ids=ids, used_token=mask)[0]
    assert (y[mask == 0] == 0).all()
    y.sin().sum().backward()

    x64 = x.detach().double().requires_grad_()
    total = 0
    for example, task, real in zip(x64, ids.tolist(), mask, strict=True):
        weight = exact.gate.wg.weight[4 * task : 4 * task + 4]
        for token in example[real > 0]:
            prob = torch.softmax(weight @ token, dim=0)
            expert = int(prob.argmax())
            scale = prob[expert]
            if gate_scale == "preserve":
                scale = scale / scale.detach()
            total = total + (exact.shared(token) + scale * exact.experts[expert](token)).sin().sum()
    total.backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for (name, mine), other in zip(layer.named_parameters(), exact.parameters(), strict=True):
        wanted = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(mine.grad.double(), wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_another_module_than_an_ffn_has_no_slice():
    options = RoutingOptions(4, 3, "preserve", shared_share=0.5)
    with pytest.raises(ValueError, match="shared_share = 0.5 with an expert that is Sequential"):
        MoELayer(HIDDEN, nn.Sequential(nn.Linear(HIDDEN, HIDDEN)), options)
