"""What the paper varies or proposes inside the sparse layer, beyond its own model."""

import math

import pytest
import torch

from ds_moe_mtl.engine.optimizer_groups import parameter_groups
from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.models.losses import sequence_losses
from ds_moe_mtl.models.token_level.context import kept_routes
from ds_moe_mtl.models.token_level.experts import ffn_weights
from ds_moe_mtl.models.token_level.gating import GATE_INIT_STD
from ds_moe_mtl.moe.convert import load_plain_state, plain_state, to_deepspeed

HIDDEN, GATES = 16, 6


def generated(width=2, seed=0):
    torch.manual_seed(seed)
    options = RoutingOptions(4, GATES, "preserve", gate_embedding=width)
    return MoELayer(HIDDEN, FeedForward(HIDDEN, 24), options)


def test_a_generated_gate_is_its_vector_times_the_generator():
    gates = generated().gate.wg
    for gate in range(GATES):
        product = (gates.vectors[gate] @ gates.generator).view(4, HIDDEN)
        torch.testing.assert_close(gates.weight[4 * gate : 4 * gate + 4], product)


def test_new_generated_gates_are_as_small_as_free_ones():
    weights = torch.cat([generated(64, seed).gate.wg.weight for seed in range(8)])
    assert weights.std().item() == pytest.approx(GATE_INIT_STD, rel=0.1)


def test_tasks_with_one_vector_route_alike_and_a_task_trains_the_others_gates():
    layer = generated()
    with torch.no_grad():
        layer.gate.wg.generator.mul_(300)
        layer.gate.wg.vectors[1] = layer.gate.wg.vectors[0]
        layer.gate.wg.vectors[2] = -layer.gate.wg.vectors[0]
    x = torch.randn(1, 50, HIDDEN)
    routes = []
    for gate in range(3):
        with kept_routes() as kept:
            layer(x, gate_ids=torch.tensor([gate]))
        routes.append(kept[0].expert_T.clone())
    assert torch.equal(routes[0], routes[1]) and not torch.equal(routes[0], routes[2])
    before = layer.gate.wg.weight.detach().clone()
    layer(x, gate_ids=torch.tensor([0]))[0].square().sum().backward()
    gates = layer.gate.wg
    assert gates.vectors.grad[3:].abs().sum() == 0 and gates.generator.grad.abs().sum() > 0
    with torch.no_grad():
        gates.generator -= 0.1 * gates.generator.grad
    assert not torch.equal(gates.weight[12:16], before[12:16])


def test_a_generated_gate_survives_deepspeeds_form_and_back():
    model = torch.nn.ModuleDict({"moe": generated()})
    plain = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x, ids = torch.randn(3, 5, HIDDEN), torch.tensor([0, 5, 2])
    expected, _, counts = model["moe"](x, gate_ids=ids)
    to_deepspeed(model)
    found, _, counts_after = model["moe"](x, gate_ids=ids)
    torch.testing.assert_close(found, expected)
    assert torch.equal(counts, counts_after)
    state = plain_state(model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[key], plain[key]) for key in plain)
    load_plain_state(model, {key: tensor + 1 for key, tensor in plain.items()})
    assert torch.equal(plain_state(model)["moe.gate.wg.vectors"], plain["moe.gate.wg.vectors"] + 1)
    groups = {
        group["name"]: group["params"] for group in parameter_groups(model, 0.1, (0.9, 0.9), 1)
    }
    assert len(groups["gates"]) == 2  # vectors and generator: no weight decay


def test_expert_dropout_works_in_training_alone():
    torch.manual_seed(0)
    expert = FeedForward(HIDDEN, 24, dropout=0.5)
    layer = MoELayer(HIDDEN, expert, RoutingOptions(2, 1, "preserve"))
    plain = MoELayer(HIDDEN, FeedForward(HIDDEN, 24), RoutingOptions(2, 1, "preserve"))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 40, HIDDEN)
    expected = plain(x)[0]
    assert ffn_weights(list(layer.experts)) is None
    draws = torch.stack([layer(x)[0].detach() for _ in range(400)])
    assert not torch.equal(draws[0], draws[1])
    # Dropout before a linear layer leaves its mean: the error shrinks with the draws' number.
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / math.sqrt(len(draws)))
    assert error.mean() < 1.2
    layer.eval()
    torch.testing.assert_close(layer(x)[0], expected)


def test_losses_without_scaling_are_cross_entropy_and_squared_error():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.3, 0.1, -torch.inf], [2.0, -torch.inf, -torch.inf]])
    labels, outputs = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([3, 2, 1])
    losses = sequence_losses(logits, labels, outputs, scaled=False)
    expected = torch.nn.functional.cross_entropy(logits[:1], torch.tensor([1]))
    assert losses[0] == pytest.approx(expected.item()) and losses[2] == 2.25
    scaled = sequence_losses(logits, labels, outputs)
    assert losses[:2] / scaled[:2] == pytest.approx([math.log(3), math.log(2)])
