"""Selection, temperatures and noise against closed forms; routers and random routes."""

import math

import pytest
import torch

from ds_moe_mtl.models.task_level.task_router import (
    RouterOptions,
    TaskRouter,
    gumbel_noise,
    select,
    temperature,
)

LAYERS = (0, 2)


def router_of(tasks=5, **options) -> TaskRouter:
    torch.manual_seed(0)
    return TaskRouter(RouterOptions(layers=LAYERS, **options), tasks)


def test_softmax_is_the_closed_form_at_every_temperature():
    for tau in (0.5, 1.0, 4.0):
        route = select(torch.tensor([0.0, math.log(3.0)]), "softmax", tau)
        odds = 3 ** (1 / tau)
        torch.testing.assert_close(route, torch.tensor([1.0, odds]) / (1 + odds))


def test_gumbel_is_the_softmax_of_logits_and_noise():
    logits, noise = torch.tensor([0.3, -1.0, 0.0]), torch.tensor([1.0, 2.5, -0.5])
    values = [math.exp((x + g) / 0.7) for x, g in zip(logits, noise, strict=True)]
    expected = torch.tensor(values) / sum(values)
    torch.testing.assert_close(select(logits, "gumbel", 0.7, noise), expected)
    torch.testing.assert_close(select(logits, "softmax", 0.7, noise), logits.div(0.7).softmax(0))


def test_straight_through_is_one_hot_with_the_gradient_of_the_soft_route():
    logits = torch.tensor([0.2, 1.1, -0.4], requires_grad=True)
    noise, tau = torch.tensor([0.5, 0.1, 0.2]), 0.8
    weight = torch.tensor([2.0, -1.0, 0.5])
    route = select(logits, "straight_through", tau, noise)
    torch.testing.assert_close(route, torch.tensor([0.0, 1.0, 0.0]))
    (route * weight).sum().backward()
    p = ((logits + noise) / tau).softmax(0).detach()
    # d/dx_i of sum_j w_j p_j = p_i (w_i - sum_j w_j p_j) / tau
    torch.testing.assert_close(logits.grad, p * (weight - (p * weight).sum()) / tau)


def test_temperature_falls_exponentially_to_its_floor():
    assert temperature(0, 2.0, 0.1, 3e-4) == 2.0
    assert temperature(1000, 2.0, 0.1, 3e-4) == pytest.approx(2 * math.exp(-0.3))
    assert temperature(30_000, 2.0, 0.1, 3e-4) == 0.1
    assert temperature(60_000, 300.0, 1.0, 1e-4) == 1.0  # stage 2 of the public code


def test_noise_is_gumbels_and_a_function_of_seed_and_step():
    noise = gumbel_noise((200, 500), seed=1, step=7)
    # Mean of Gumbel(0, 1): Euler's constant; variance: pi^2 / 6. Five standard errors of 100,000.
    assert float(noise.mean()) == pytest.approx(0.5772, abs=5 * 1.2825 / math.sqrt(1e5))
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.04)
    assert torch.equal(noise, gumbel_noise((200, 500), seed=1, step=7))
    assert not torch.equal(noise, gumbel_noise((200, 500), seed=1, step=8))


@pytest.mark.parametrize("selection", ["gumbel", "straight_through"])
def test_routes_are_noisy_in_training_and_never_in_evaluation(selection):
    router = router_of(selection=selection, temperature=1.0, temperature_min=1.0)
    steps = []
    for step in (1, 2, 3, 4):
        router.train().set_step(step)
        steps.append(router.task_routes().detach())
    assert any(not torch.equal(steps[0], other) for other in steps[1:])
    evaluated = []
    for step in (1, 2):
        router.eval().set_step(step)
        evaluated.append(router.task_routes())
    assert torch.equal(*evaluated)
    torch.testing.assert_close(
        evaluated[0], select(router.logits(), selection, 1.0), rtol=0, atol=0
    )


@pytest.mark.parametrize("net", ["linear", "mlp", "lstm", "transformer"])
def test_a_router_routes_each_task_by_its_own_vector_in_every_layer(net):
    router = router_of(net=net, vector_size=16, hidden=8, selection="softmax").eval()
    before = router.task_routes()
    assert before.shape == (2, 5, 3)
    torch.testing.assert_close(before.sum(dim=2), torch.ones(2, 5))
    router.vectors.data[3] += 1.0
    changed = (router.task_routes() != before).any(dim=2)
    assert changed[:, 3].all() and not changed[:, [0, 1, 2, 4]].any()
    router.task_routes()[0, 0, 0].backward()
    assert all(p.grad is not None for p in router.net.parameters() if net in ("lstm",))
    assert router.vectors.grad[0].abs().sum() > 0 and not router.vectors.grad[1:].any()


def test_routes_stay_float32_where_the_model_is_bfloat16():
    router = router_of(net="lstm").to(torch.bfloat16).eval()
    assert router.task_routes().dtype == router.logits().dtype == torch.float32


def test_average_routes_share_equally_and_random_ones_are_one_hot():
    torch.testing.assert_close(
        router_of(route="average").task_routes(), torch.full((2, 5, 3), 1 / 3)
    )
    table = router_of(route="random_task", tasks=300).task_routes()
    assert set(table.unique().tolist()) == {0.0, 1.0} and (table.sum(dim=2) == 1).all()
    assert (table.mean(dim=1) - 1 / 3).abs().max() < 0.1
    again = router_of(route="random_task", tasks=300)
    assert torch.equal(again.task_routes(), table)


def test_random_instances_keep_an_example_together_and_differ_between_steps():
    router = router_of(route="random_instance")
    tasks = torch.arange(400) % 5
    questions = torch.arange(400) // 2
    router.train().set_step(3)
    routes = router(tasks[:1].expand(400), questions)
    assert torch.equal(routes[:, ::2], routes[:, 1::2])
    assert (routes.mean(dim=1) - 1 / 3).abs().max() < 0.1
    assert not torch.equal(routes[0], routes[1])
    router.set_step(4)
    assert not torch.equal(router(tasks[:1].expand(400), questions), routes)
    router.eval()
    fixed = router(tasks, questions)
    router.set_step(9)
    assert torch.equal(router(tasks, questions), fixed)


def test_only_routes_that_need_no_gradient_are_executed_sparsely():
    assert not router_of(selection="straight_through").train().one_hot
    assert router_of(selection="straight_through").eval().one_hot
    assert router_of(selection="straight_through", frozen=True).train().one_hot
    assert not router_of(selection="softmax").eval().one_hot
    assert router_of(route="random_task").one_hot and not router_of(route="average").one_hot
