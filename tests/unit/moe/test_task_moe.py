"""TaskMoE against the plain layer and against stock DeepSpeed, on one rank."""

import copy

import pytest
import torch
from deepspeed.moe.layer import MoE
from deepspeed.moe.sharded_moe import MOELayer, TopKGate
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.moe import TaskGate, TaskMoE, to_deepspeed
from ds_moe_mtl.moe.convert import is_expert_key, load_plain_state, plain_key, plain_state

HIDDEN = 16


def holder_of(**options) -> nn.Module:
    """Return a module with one plain layer `moe` whose gates are spread and experts differ."""
    torch.manual_seed(0)
    holder = nn.Module()
    holder.moe = MoELayer(HIDDEN, FeedForward(HIDDEN, 24), RoutingOptions(4, 3, **options))
    for parameter in holder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return holder


def inputs():
    torch.manual_seed(5)
    return torch.randn(4, 6, HIDDEN), torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("gate_scale", ["paper", "preserve"])
def test_both_forms_of_the_layer_agree_in_output_and_every_gradient(gate_scale):
    plain = holder_of(gate_scale=gate_scale)
    deep = to_deepspeed(copy.deepcopy(plain))
    assert isinstance(deep.moe, TaskMoE)
    x, ids = inputs()
    mask = torch.ones(4, 6)
    mask[1, 3:] = 0
    answers = []
    for holder in (plain, deep):
        own_x = x.clone().requires_grad_()
        y, aux, counts = holder.moe(own_x, mask, gate_ids=ids)
        y.sin().sum().backward()
        answers.append((y, counts, own_x.grad, aux))
    for mine, other in zip(*answers, strict=True):
        assert torch.equal(mine, other)
    grads = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in deep.named_parameters():
        assert torch.equal(parameter.grad, grads[plain_key(name)]), name


def test_the_layer_is_deepspeeds_with_its_names_and_one_gate_matrix():
    layer = TaskMoE(HIDDEN, FeedForward(HIDDEN, 24), num_experts=4, num_gates=8)
    assert isinstance(layer, MoE) and isinstance(layer.deepspeed_moe.gate, TopKGate)
    assert layer.deepspeed_moe.gate.wg.weight.shape == (32, HIDDEN)
    assert (layer.num_experts, layer.num_local_experts, layer.ep_size) == (4, 4, 1)
    assert layer.expert_group_name == "ep_size_1"
    experts = layer.deepspeed_moe.experts.parameters()
    assert all(p.allreduce is False and p.group_name == "ep_size_1" for p in experts)


def test_dropless_equals_stock_deepspeed_without_dropping():
    torch.manual_seed(0)
    expert = FeedForward(HIDDEN, 24)
    ours = TaskMoE(HIDDEN, expert, num_experts=4, num_gates=1, gate_scale="paper")
    stock = MoE(
        HIDDEN, expert, num_experts=4, k=1, drop_tokens=False, use_rts=False, min_capacity=0
    )
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    stock.load_state_dict(ours.state_dict())
    x, _ = inputs()
    answers = []
    for layer in (ours, stock):
        own_x = x.clone().requires_grad_()
        y, _, counts = layer(own_x)
        y.sin().sum().backward()
        answers.append((y, own_x.grad, counts.long(), *(p.grad for p in layer.parameters())))
    for mine, other in zip(*answers, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_gate_answers_in_deepspeeds_contract_and_a_stock_layer_can_use_it():
    layer = to_deepspeed(holder_of()).moe.eval()
    gate = layer.deepspeed_moe.gate
    assert isinstance(gate, TaskGate)
    x, ids = inputs()
    tokens = ids[:, None].expand(4, 6).reshape(-1)
    mask = torch.ones(24)
    mask[7:9] = 0
    _, capacity, experts, index, location, value, counts = gate(
        x.reshape(-1, HIDDEN), mask, True, False, gate_ids=tokens
    )
    assert (experts, index.dtype, location.dtype) == (4, torch.int32, torch.int32)
    assert value.dtype == torch.float32 and int(capacity) == int(counts.max())
    assert (index[0, 7:9] == -1).all() and counts.sum() == 22
    for expert in range(4):
        places = location[0][index[0] == expert]
        assert places.tolist() == list(range(int(counts[expert])))

    class OneTask(TaskGate):
        def forward(self, *arguments):
            return super().forward(*arguments, gate_ids=tokens)

    gate.__class__ = OneTask
    stock = MOELayer(gate, layer.deepspeed_moe.experts, "ep_size_1", 1, 4)
    y, _, _ = layer(x, mask.view(4, 6), gate_ids=ids)
    torch.testing.assert_close(stock(x, mask), y, rtol=1e-5, atol=1e-6)


def test_a_plain_state_goes_through_deepspeeds_form_unchanged():
    plain = holder_of()
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    deep = to_deepspeed(plain)
    found = plain_state(deep)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    for parameter in deep.parameters():
        nn.init.zeros_(parameter)
    load_plain_state(deep, state)
    assert all(torch.equal(plain_state(deep)[name], state[name]) for name in state)


def test_an_experts_global_index_is_its_own_plus_its_ranks_place():
    key = "layer.moe.deepspeed_moe.experts.deepspeed_experts.1.fc1.weight"
    assert is_expert_key(key) and plain_key(key, 2, 4) == "layer.moe.experts.9.fc1.weight"
    gate = "layer.moe.deepspeed_moe.gate.wg.weight"
    assert not is_expert_key(gate) and plain_key(gate) == "layer.moe.gate.wg.weight"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_experts": 4, "ep_size": 3}, "ep_size must divide"),
        ({"gate_scale": "none"}, "gate_scale"),
        ({"dispatch": "random"}, "dispatch"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TaskMoE(HIDDEN, FeedForward(HIDDEN, 24), **options)


def test_expert_parallelism_without_a_process_group_says_what_to_do():
    layer = TaskMoE(HIDDEN, FeedForward(HIDDEN, 24), num_gates=1, ep_size=2)
    with pytest.raises(RuntimeError, match="set_deepspeed_parallelism"):
        layer(inputs()[0])
