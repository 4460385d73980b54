"""Tied experts are one dense FFN: in its output, in every copy's gradient, and in their norm."""

import pytest
import torch
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.moe import to_deepspeed
from tests.support.ffn_forms import FORMS

HIDDEN = 16


def holder_of(num_experts=4, form=("gelu", True), **options):
    torch.manual_seed(0)
    dense = FeedForward(HIDDEN, 24, form[0], bias=form[1])
    holder = nn.Module()
    holder.moe = MoELayer(HIDDEN, dense, RoutingOptions(num_experts, 3, "preserve", **options))
    return dense, holder


def inputs():
    x = torch.randn(4, 6, HIDDEN, generator=torch.Generator().manual_seed(3))
    return x, torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("deepspeed", [False, True])
@pytest.mark.parametrize(
    ("num_experts", "form"), [(1, FORMS[0]), (4, FORMS[0]), *((3, form) for form in FORMS)]
)
def test_a_tied_layer_is_the_dense_ffn_with_its_gradient_and_norm(num_experts, form, deepspeed):
    dense, holder = holder_of(num_experts, form)
    if deepspeed:
        to_deepspeed(holder)
    layer = holder.moe.train()
    layer.tied = True
    x, ids = inputs()
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, aux, counts = layer(own, gate_ids=ids)
    y.sin().sum().backward()
    expected = dense(other)
    expected.sin().sum().backward()
    assert torch.equal(y, expected) and torch.equal(own.grad, other.grad)
    assert aux == 0 and counts.tolist() == [0] * num_experts
    gradients = [p.grad for name, p in layer.named_parameters() if "experts" in name]
    whole_ones = [p.grad for p in dense.parameters()]
    for number, gradient in enumerate(gradients):
        whole = whole_ones[number % len(whole_ones)]
        torch.testing.assert_close(gradient * num_experts**0.5, whole, rtol=1e-6, atol=1e-7)
    norm = torch.nn.utils.get_total_norm(gradients)
    torch.testing.assert_close(norm, torch.nn.utils.get_total_norm(whole_ones))
    gates = [p.grad for name, p in layer.named_parameters() if ".wg." in name]
    assert all(grad is not None and grad.abs().sum() == 0 for grad in gates) and gates


def test_parting_changes_no_output_and_evaluation_is_always_apart():
    dense, holder = holder_of()
    layer, (x, ids) = holder.moe, inputs()
    layer.tied = True
    tied = layer(x, gate_ids=ids)[0]
    layer.eval()
    y, _, counts = layer(x, gate_ids=ids)
    assert counts.sum() == 24
    torch.testing.assert_close(y, tied, rtol=1e-6, atol=1e-6)
    layer.train().tied = False
    torch.testing.assert_close(layer(x, gate_ids=ids)[0], tied, rtol=1e-6, atol=1e-6)


def test_pads_get_zero_and_a_shared_slice_is_beside_what_is_tied():
    dense, holder = holder_of(shared_share=0.7)
    layer, (x, ids) = holder.moe, inputs()
    layer.tied = True
    mask = torch.ones(4, 6)
    mask[1, 2:] = 0
    y = layer(x, gate_ids=ids, used_token=mask)[0]
    assert (y[mask == 0] == 0).all()
    torch.testing.assert_close(y[mask > 0], dense(x)[mask > 0], rtol=1e-6, atol=1e-6)


def test_dropout_in_experts_works_while_they_are_tied():
    torch.manual_seed(0)
    layer = MoELayer(HIDDEN, FeedForward(HIDDEN, 24, dropout=0.5), RoutingOptions(4, 3, "preserve"))
    layer.tied = True
    x, ids = inputs()
    assert not torch.equal(layer(x, gate_ids=ids)[0], layer(x, gate_ids=ids)[0])


def test_only_ffns_on_one_rank_can_be_tied():
    options = RoutingOptions(2, 1, "preserve")
    layer = MoELayer(HIDDEN, nn.Sequential(nn.Linear(HIDDEN, HIDDEN)), options)
    layer.tied = True
    with pytest.raises(ValueError, match="tied experts that are Sequential"):
        layer(inputs()[0])
