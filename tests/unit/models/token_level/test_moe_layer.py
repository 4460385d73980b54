"""The layer against its oracles: the dense FFN, a float64 loop over tokens, isolation, pads."""

import copy

import pytest
import torch
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions

HIDDEN, INNER = 16, 24


def layer_of(num_experts=4, num_gates=3, differ=0.0, **options) -> tuple[FeedForward, MoELayer]:
    """Return a dense FFN and an MoE layer of its copies, gates spread, experts made to differ."""
    torch.manual_seed(0)
    dense = FeedForward(HIDDEN, INNER)
    layer = MoELayer(HIDDEN, dense, RoutingOptions(num_experts, num_gates, **options))
    nn.init.normal_(layer.gate.wg.weight)
    for parameter in layer.experts.parameters():
        parameter.data += differ * torch.randn_like(parameter)
    return dense, layer


def inputs(batch=5, length=7):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, length, HIDDEN, generator=generator)
    return x, torch.arange(batch) % 3


@pytest.mark.parametrize("num_experts", [1, 4])
def test_copies_with_preserve_are_the_dense_layer_at_step_0(num_experts):
    dense, layer = layer_of(num_experts, gate_scale="preserve")
    x, ids = inputs()
    torch.testing.assert_close(layer(x, gate_ids=ids)[0], dense(x), rtol=1e-6, atol=1e-6)


def test_one_expert_with_preserve_has_the_dense_gradients_too():
    dense, layer = layer_of(1, gate_scale="preserve")
    x, ids = inputs()
    layer(x, gate_ids=ids)[0].square().sum().backward()
    dense(x).square().sum().backward()
    for mine, other in zip(layer.experts[0].parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_near_zero_gates_with_paper_scale_the_branch_by_one_over_the_experts():
    dense, layer = layer_of(4, gate_scale="paper")
    nn.init.zeros_(layer.gate.wg.weight)
    x, ids = inputs()
    torch.testing.assert_close(layer(x, gate_ids=ids)[0], dense(x) / 4, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate_scale", ["paper", "preserve"])
def test_output_and_gradients_equal_a_float64_loop_over_tokens(gate_scale):
    _, layer = layer_of(differ=0.3, gate_scale=gate_scale)
    x, ids = inputs()
    exact = copy.deepcopy(layer).double()
    x.requires_grad_()
    layer(x, gate_ids=ids)[0].sin().sum().backward()

    x64 = x.detach().double().requires_grad_()
    total = 0
    for example, task in enumerate(ids.tolist()):
        weight = exact.gate.wg.weight[4 * task : 4 * task + 4]
        for token in x64[example]:
            prob = torch.softmax(weight @ token, dim=0)
            expert = int(prob.argmax())
            scale = prob[expert]
            if gate_scale == "preserve":
                scale = scale / scale.detach()
            total = total + (scale * exact.experts[expert](token)).sin().sum()
    total.backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for mine, other in zip(layer.parameters(), exact.parameters(), strict=True):
        wanted = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(mine.grad.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_tasks_gate_gets_no_gradient_from_other_tasks_examples():
    _, layer = layer_of(differ=0.3)
    x, _ = inputs()
    layer(x, gate_ids=torch.full((5,), 1))[0].square().sum().backward()
    by_gate = layer.gate.wg.weight.grad.view(3, 4, HIDDEN).abs().amax(dim=(1, 2))
    assert by_gate[1] > 0 and by_gate[0] == 0 and by_gate[2] == 0


def test_pads_are_not_counted_get_zero_and_change_nothing():
    _, layer = layer_of(differ=0.3)
    x, ids = inputs()
    mask = torch.ones(5, 7)
    mask[2, 4:] = 0
    mask[4] = 0
    y, _, counts = layer(x, mask, gate_ids=ids)
    assert counts.sum() == mask.sum()
    assert (y[mask == 0] == 0).all()
    noisy = torch.where(mask[..., None] > 0, x, torch.full_like(x, 1e4))
    again, _, _ = layer(noisy, mask, gate_ids=ids)
    assert torch.equal(again[mask > 0], y[mask > 0])


def test_gate_ids_a_token_and_an_example_give_the_same():
    _, layer = layer_of(differ=0.3)
    x, ids = inputs()
    whole = layer(x, gate_ids=ids)[0]
    assert torch.equal(layer(x, gate_ids=ids[:, None].expand(5, 7))[0], whole)


def test_no_auxiliary_loss_by_default_and_a_balanced_layer_has_balance_loss_one():
    _, layer = layer_of()
    x, ids = inputs()
    assert layer(x, gate_ids=ids)[1] == 0
    _, balanced = layer_of(num_gates=1, load_balance_loss=1.0)
    nn.init.zeros_(balanced.gate.wg.weight)
    assert balanced(x)[1].item() == pytest.approx(1.0)


def test_auxiliary_losses_are_their_closed_forms_over_real_tokens():
    x, ids = inputs()
    mask = torch.ones(5, 7)
    mask[1, 3:] = 0
    _, plain = layer_of(differ=0.3)
    logits = [
        plain.gate.wg.weight[4 * task : 4 * task + 4] @ token
        for task, example, real in zip(ids.tolist(), x, mask, strict=True)
        for token in example[real > 0]
    ]
    logits_RE = torch.stack(logits)
    share_E = torch.bincount(logits_RE.argmax(1), minlength=4) / len(logits_RE)
    balance = 4 * (share_E * logits_RE.softmax(1).mean(0)).sum()
    z = logits_RE.exp().sum(1).log().square().mean()
    for weights, wanted in (((0.5, 0), balance / 2), ((0, 0.25), z / 4), ((1, 1), balance + z)):
        _, layer = layer_of(differ=0.3, load_balance_loss=weights[0], router_z_loss=weights[1])
        _, loss, _ = layer(x, mask, gate_ids=ids)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
        loss.backward()
        assert layer.gate.wg.weight.grad.abs().sum() > 0


def test_capacity_drops_the_tokens_beyond_it_in_token_order():
    _, layer = layer_of(num_gates=1, dispatch="capacity", capacity_factor=1.0)
    nn.init.zeros_(layer.gate.wg.weight)  # all tokens to expert 0, capacity 35 / 4 -> 9
    x, _ = inputs()
    y, _, counts = layer(x)
    assert counts.tolist() == [9, 0, 0, 0]
    kept = y.reshape(-1, HIDDEN).abs().amax(dim=1) > 0
    assert kept.tolist() == [True] * 9 + [False] * 26


def test_out_of_training_capacity_drops_nothing_and_no_token_depends_on_its_neighbours():
    _, layer = layer_of(num_gates=1, dispatch="capacity", capacity_factor=0.5, differ=0.3)
    x, _ = inputs()
    whole, _, counts = layer.eval()(x)
    assert counts.sum() == x.shape[0] * x.shape[1]
    alone = torch.cat([layer(row[None])[0] for row in x])
    torch.testing.assert_close(whole, alone)
    assert layer.train()(x)[2].sum() < counts.sum()


def test_jitter_moves_routes_in_training_only():
    _, layer = layer_of(differ=0.3, jitter=0.9)
    x, ids = inputs()
    assert torch.equal(layer.eval()(x, gate_ids=ids)[0], layer(x, gate_ids=ids)[0])
    torch.manual_seed(1)
    assert not torch.equal(layer.train()(x, gate_ids=ids)[0], layer.eval()(x, gate_ids=ids)[0])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (None, "allowed with one gate only"),
        (torch.tensor([0, 1, 2, 3, 0]), "must be in 0..2"),
        (torch.tensor([0, 1]), r"must be \[5, 7\] or \[5\]"),
    ],
)
def test_gate_ids_that_do_not_fit_are_refused(ids, words):
    _, layer = layer_of()
    with pytest.raises(ValueError, match=words):
        layer(inputs()[0], gate_ids=ids)


@pytest.mark.parametrize(
    "bad", [{"gate_scale": "both"}, {"dispatch": "drop"}, {"capacity_factor": 0.0}]
)
def test_options_outside_what_is_allowed_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RoutingOptions(**bad)


def test_experts_may_be_any_module():
    torch.manual_seed(0)
    expert = nn.Sequential(nn.Linear(HIDDEN, 8), nn.ReLU(), nn.Linear(8, HIDDEN))
    layer = MoELayer(HIDDEN, expert, RoutingOptions(4, 3, "preserve"))
    x, ids = inputs()
    torch.testing.assert_close(layer(x, gate_ids=ids)[0], expert(x), rtol=1e-6, atol=1e-6)
