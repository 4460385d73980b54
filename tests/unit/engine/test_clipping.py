"""Router and model clipped apart, without ZeRO: each side by its own norm."""

import math
from types import SimpleNamespace

import pytest
import torch

from ds_moe_mtl.engine.clipping import clip_apart
from ds_moe_mtl.models.task_level.task_router import ROUTER_GROUP, VECTORS_GROUP

NAMES = ("weights", "biases_and_norms", ROUTER_GROUP, VECTORS_GROUP)


def engine_with(gradients):
    """Return what clip_apart reads of DeepSpeed's engine at stage 0, a parameter a group."""
    groups = []
    for name, gradient in zip(NAMES, gradients, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(len(gradient)))
        parameter.grad = torch.tensor(gradient)
        groups.append({"name": name, "params": [parameter]})
    optimizer = SimpleNamespace(param_groups=groups)
    return SimpleNamespace(zero_optimization=lambda: 0, optimizer=optimizer)


def clipped(gradients, router, model):
    engine = engine_with(gradients)
    config = SimpleNamespace(router=SimpleNamespace(clip=router), train=SimpleNamespace(clip=model))
    total = clip_apart(engine, config)
    return total, [group["params"][0].grad for group in engine.optimizer.param_groups]


def test_each_side_is_scaled_by_its_own_norm():
    total, found = clipped([[3.0, 0.0], [4.0], [0.06], [0.08]], router=0.05, model=1.0)
    assert total == pytest.approx(math.sqrt(25 + 0.01))
    for gradient, expected in zip(found, [[0.6, 0.0], [0.8], [0.03], [0.04]], strict=True):
        torch.testing.assert_close(gradient, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_a_side_within_its_bound_or_without_one_stays():
    _, found = clipped([[3.0, 0.0], [4.0], [6.0], [8.0]], router=0.0, model=10.0)
    assert [gradient.tolist() for gradient in found] == [[3.0, 0.0], [4.0], [6.0], [8.0]]


def test_a_gradient_that_is_not_finite_is_left_to_the_step_that_is_skipped():
    total, found = clipped([[3.0, math.nan], [4.0], [6.0], [8.0]], router=0.1, model=0.1)
    assert not math.isfinite(total) and found[1].tolist() == [4.0]
