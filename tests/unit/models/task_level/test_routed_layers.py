"""Layers as experts on the packed encoder: average, sparse and dense execution, gradients."""

import pytest
import torch

from ds_moe_mtl.data.batch import collate
from ds_moe_mtl.models import HeadSpec, build_network
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from tests.support.splits import split_of_lengths

TASKS = 3


def bert(layers=3):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12_000,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False)


def network_of(kind="task_moe", differ=0.0, noise=0.0, **options):
    """Return a network of three tasks; options: the router's."""
    options = {"layers": (0, 2), **options}
    heads = [HeadSpec(f"task{i}", 2) for i in range(TASKS)]
    torch.manual_seed(1)
    network = build_network(
        bert(), kind, heads, 0.0, expert_noise=noise, router=RouterOptions(**options)
    )
    if differ:
        torch.manual_seed(2)
        for layer in (network.encoder.transformer.encoder.layer[i] for i in (0, 2)):
            for parameter in layer.experts.parameters():
                parameter.data += differ * torch.randn_like(parameter)
    return network


def batch_of(lengths=(9, 9, 7, 5, 5, 3, 2), tasks=(0, 1, 2, 0, 1, 2, 1)):
    split = split_of_lengths(lengths)
    return collate([(task, n) for n, task in enumerate(tasks)], [split] * TASKS)


def outputs(network, batch):
    return network(**network_inputs(batch)).logits_BC


def test_average_route_over_identical_experts_is_the_plain_model():
    routed, plain = network_of(route="average"), network_of("mt_dense")
    plain.heads.load_state_dict(routed.heads.state_dict())
    batch = batch_of()
    expected = outputs(plain, batch)
    torch.testing.assert_close(outputs(routed, batch), expected, rtol=1e-5, atol=1e-6)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("route", ["random_task", "random_instance", "learned"])
def test_sparse_execution_is_the_dense_mixture_of_one_hot_routes(route):
    network = network_of(route=route, differ=0.05, frozen=route == "learned")
    network.train().set_step(5)
    batch = batch_of()
    found = {}
    for sparse in (True, False):
        network.zero_grad()
        assert network.router.one_hot
        if not sparse:
            network._scope.use = _densely(network._scope.use)
        logits = outputs(network, batch)
        logits.square().sum().backward()
        found[sparse] = (
            logits,
            [p.grad for n, p in network.named_parameters() if "router" not in n],
        )
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-5, atol=1e-6)
    for one, other in zip(found[True][1], found[False][1], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _densely(use):
    def dense(call):
        call.one_hot = False
        return use(call)

    return dense


def test_tasks_with_other_routes_get_other_outputs():
    network = network_of(route="random_task", differ=0.3).eval()
    same = batch_of(lengths=(6, 6), tasks=(0, 0))
    network.router.table[:, 1] = network.router.table[:, 0]
    routes = network.router.table
    routes[:, 2] = routes[:, 0].roll(1, dims=-1)
    same.input_ids_T[6:] = same.input_ids_T[:6]
    hidden = []
    for task in range(TASKS):
        ids = torch.full((2,), task)
        call_routes = network.router(ids, None)
        from ds_moe_mtl.models.task_level.routed_layers import RouteCall

        with network._scope.use(RouteCall(call_routes, [6, 6], True)):
            inputs = network_inputs(same)
            names = (
                "input_ids_T",
                "token_type_ids_T",
                "position_ids_T",
                "cu_seqlens",
                "groups",
            )
            hidden.append(network.encoder(*(inputs[name] for name in names)))
    assert torch.equal(hidden[0], hidden[1]) and not torch.allclose(hidden[0], hidden[2])


def test_learned_routes_get_a_gradient_and_frozen_ones_none():
    batch = batch_of()
    for frozen in (False, True):
        network = network_of(differ=0.05, frozen=frozen).train()
        outputs(network, batch).square().sum().backward()
        gradients = [p.grad for p in network.router.parameters()]
        assert all((g is None) == frozen for g in gradients)
        assert frozen or all(g.abs().sum() > 0 for g in gradients[:1])


def test_idle_experts_get_a_gradient_of_zeros():
    network = network_of(route="random_task", differ=0.05).train()
    batch = batch_of(lengths=(4,), tasks=(1,))
    outputs(network, batch).sum().backward()
    idle = used = 0
    for place, index in ((0, 0), (2, 1)):
        chosen = int(network.router.table[index, 1].argmax())
        for e, expert in enumerate(network.encoder.transformer.encoder.layer[place].experts):
            total = sum(float(p.grad.abs().sum()) for p in expert.parameters())
            assert (total > 0) == (e == chosen)
            idle, used = idle + (e != chosen), used + (e == chosen)
    assert (idle, used) == (4, 2)


@pytest.mark.parametrize("route", ["learned", "random_task"])
def test_a_rank_without_examples_still_reaches_every_parameter(route):
    network = network_of(route=route).train()
    empty = collate([], [split_of_lengths([3])] * TASKS)
    logits = outputs(network, empty)
    assert logits.shape == (0, 2)
    logits.sum().backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_copies_are_exact_but_for_the_noise_asked_for():
    exact = network_of(noise=0.0).encoder.transformer.encoder.layer[0].experts
    for one, other in zip(exact[0].parameters(), exact[2].parameters(), strict=True):
        assert torch.equal(one, other)
    noisy = network_of(noise=1e-3).encoder.transformer.encoder.layer[0].experts
    difference = noisy[0].intermediate.dense.weight - noisy[1].intermediate.dense.weight
    assert float(difference.std()) == pytest.approx(2**0.5 * 1e-3, rel=0.1)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"router.layers: 7 is no layer; allowed: 0 to 2"):
        network_of(layers=(0, 7))
