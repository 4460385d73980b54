"""Merged experts against their closed forms: the dense FFN, a float64 loop, the tilt, isolation."""

import copy

import pytest
import torch
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.models.token_level.context import kept_routes
from ds_moe_mtl.models.token_level.merged import TILT, merge, tilted_logits
from tests.support.ffn_forms import FORMS, ffn_formula

HIDDEN, INNER, EXPERTS, GATES = 16, 24, 4, 6
TASKS = torch.tensor([0, 5, 2, 0, 3])


def layer_of(
    differ=0.3, gates=GATES, experts=EXPERTS, form=("gelu", True)
) -> tuple[FeedForward, MoELayer]:
    """Return a dense FFN and a layer of merged copies with drawn mixtures, made to differ."""
    torch.manual_seed(0)
    dense = FeedForward(HIDDEN, INNER, form[0], bias=form[1])
    options = RoutingOptions(experts, gates, "preserve", combine="merged")
    layer = MoELayer(HIDDEN, dense, options)
    nn.init.normal_(layer.gate.wg.weight)
    for parameter in layer.experts.parameters():
        parameter.data += differ * torch.randn_like(parameter)
    return dense, layer


def inputs():
    return torch.randn(5, 7, HIDDEN, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("experts", [1, EXPERTS])
def test_merged_copies_are_the_dense_layer_whatever_the_mixture(experts, form):
    dense, layer = layer_of(differ=0.0, experts=experts, form=form)
    x = inputs()
    torch.testing.assert_close(layer(x, gate_ids=TASKS)[0], dense(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_output_and_every_gradient_equal_a_float64_loop_over_examples(form):
    _, layer = layer_of(form=form)
    exact = copy.deepcopy(layer).double()
    x = inputs().requires_grad_()
    y, aux, load = layer(x, gate_ids=TASKS)
    y.sin().sum().backward()

    x64 = x.detach().double().requires_grad_()
    total, loads = 0.0, torch.zeros(EXPERTS, dtype=torch.float64)
    for example, task in zip(x64, TASKS.tolist(), strict=True):
        share = torch.softmax(exact.gate.wg.weight[task], dim=0)
        weights = {
            name: sum(
                s * e.state_dict(keep_vars=True)[name]
                for s, e in zip(share, exact.experts, strict=True)
            )
            for name in exact.experts[0].state_dict()
        }
        w1, b1 = weights["fc1.weight"], weights.get("fc1.bias")
        w2, b2 = weights["fc2.weight"], weights.get("fc2.bias")
        total = total + ffn_formula(example, w1, b1, w2, b2, form[0]).sin().sum()
        loads += 7 * share.detach()
    total.backward()
    assert aux == 0
    torch.testing.assert_close(load.double(), loads, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for (name, mine), other in zip(layer.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_merge_itself_passes_a_numerical_gradient_check():
    shares = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda s, *w: merge(s, w), (shares, *weights))


@pytest.mark.parametrize(("gates", "experts"), [(6, 4), (1, 4), (3, 1)])
def test_new_mixtures_are_tilted_to_another_expert_for_each_task(gates, experts):
    shares = tilted_logits(gates, experts).softmax(1)
    for gate, row in enumerate(shares):
        wanted = torch.full((experts,), (1 - TILT) / max(experts - 1, 1))
        wanted[gate % experts] = TILT if experts > 1 else 1.0
        torch.testing.assert_close(row, wanted)


def test_every_expert_learns_from_every_token_and_copies_part_at_the_first_step():
    _, layer = layer_of(differ=0.0)
    with torch.no_grad():
        layer.gate.wg.weight.copy_(tilted_logits(GATES, EXPERTS))
    x = inputs()
    layer(x[:1], gate_ids=TASKS[1:2])[0].sin().sum().backward()  # task 5: tilted to expert 1
    norms = [expert.fc1.weight.grad.norm() for expert in layer.experts]
    assert torch.stack(norms) / norms[1] == pytest.approx([1 / 7, 1.0, 1 / 7, 1 / 7], rel=1e-4)


def test_a_mixture_gets_no_gradient_from_other_tasks_examples():
    _, layer = layer_of()
    layer(inputs(), gate_ids=torch.full((5,), 2))[0].square().sum().backward()
    by_gate = layer.gate.wg.weight.grad.abs().amax(dim=1)
    assert by_gate[2] > 0 and by_gate[[0, 1, 3, 4, 5]].sum() == 0


def test_pads_get_zero_and_change_nothing_and_are_no_load():
    _, layer = layer_of()
    x, mask = inputs(), torch.ones(5, 7)
    mask[2, 4:] = 0
    mask[4] = 0
    y, _, load = layer(x, gate_ids=TASKS, used_token=mask)
    assert load.sum().item() == pytest.approx(mask.sum().item())
    assert (y[mask == 0] == 0).all()
    noisy = torch.where(mask[..., None] > 0, x, torch.full_like(x, 1e4))
    assert torch.equal(layer(noisy, gate_ids=TASKS, used_token=mask)[0], y)


def test_tokens_of_one_call_may_have_tasks_of_their_own():
    _, layer = layer_of()
    x = inputs()
    whole = layer(x, gate_ids=TASKS)[0]
    packed = layer(x.view(1, 35, HIDDEN), gate_ids=TASKS.repeat_interleave(7)[None])[0]
    torch.testing.assert_close(packed.view_as(x), whole)


def test_without_a_token_every_parameter_still_has_a_gradient_of_zero():
    _, layer = layer_of()
    x = inputs()[:1, :1].requires_grad_()
    y, _, load = layer(x, gate_ids=torch.zeros(1, 1).long(), used_token=torch.zeros(1, 1))
    y.sum().backward()
    assert load.sum() == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in layer.parameters())


def test_in_16_bits_the_mixture_is_rounded_once():
    dense, layer = layer_of(differ=0.0)
    layer, dense, x = layer.bfloat16(), dense.bfloat16(), inputs().bfloat16()
    weights = [expert.fc1.weight for expert in layer.experts]
    shares = layer.gate.wg.weight.float().softmax(1)
    assert torch.equal(merge(shares, weights)[3], weights[0])  # copies: their own value again
    torch.testing.assert_close(layer(x, gate_ids=TASKS)[0], dense(x), rtol=2e-2, atol=2e-2)


def test_one_gate_needs_no_ids_and_is_one_mixture_for_all():
    _, layer = layer_of(gates=1)
    x = inputs()
    torch.testing.assert_close(layer(x)[0], layer(x, gate_ids=torch.zeros(5).long())[0])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (None, "allowed with one gate only"),
        (torch.tensor([0, 1, 2, 6, 0]), r"gate_ids has 6: must be in 0\.\.5"),
        (torch.tensor([0, 1]), r"must be \[5, 7\] or \[5\]"),
    ],
)
def test_gate_ids_that_do_not_fit_are_refused(ids, words):
    _, layer = layer_of()
    with pytest.raises(ValueError, match=words):
        layer(inputs(), gate_ids=ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate_scale": "paper"}, "gate_scale = paper with combine = merged"),
        ({"dispatch": "capacity"}, "dispatch = capacity with combine = merged"),
        ({"jitter": 0.1}, "jitter = 0.1 with combine = merged"),
        ({"gate_embedding": 2}, "gate_embedding = 2 with combine = merged"),
        ({"combine": "mean"}, "combine is one of"),
    ],
)
def test_options_that_do_not_go_with_merged_experts_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RoutingOptions(**{"gate_scale": "preserve", "combine": "merged", **options})


def test_experts_of_another_form_are_refused():
    options = RoutingOptions(4, 3, "preserve", combine="merged")
    with pytest.raises(ValueError, match="combine = merged with an expert that is Linear"):
        MoELayer(HIDDEN, nn.Linear(HIDDEN, HIDDEN), options)


def test_merged_experts_report_no_routes():
    _, layer = layer_of()
    with kept_routes() as routes:
        layer(inputs(), gate_ids=TASKS)
    assert routes == []
