"""Relative gains by hand, collapse of routes, FLOPs, and both pictures."""

import math

import numpy as np
import pytest

from ds_moe_mtl.analysis.task_routes import TaskRoutes, draw_task_routes
from ds_moe_mtl.planner.routed_flops import token_flops
from ds_moe_mtl.studies.crossfit.relative_gain import draw_gains, mean_and_spread, relative_gains
from tests.support.pictures import share_of_ink


def test_average_relative_gain_of_a_hand_worked_example():
    base = {"a": 50.0, "b": 40.0, "c": 0.4, "d": 80.0, "e": 1.0}
    scores = {"a": 60.0, "b": 30.0, "c": 20.0, "d": 80.0, "e": 1.5}
    gains = relative_gains(scores, base)
    # a: 10 / 50 = 0.2; b: -10 / 40 = -0.25; c: base under 1%; d: 0; e: 0.5 / 1 = 0.5
    assert gains.by_task == pytest.approx({"a": 0.2, "b": -0.25, "d": 0.0, "e": 0.5})
    assert gains.average == pytest.approx((0.2 - 0.25 + 0.0 + 0.5) / 4)
    assert gains.excluded == ("c",) and gains.below_zero == ("b",)


def test_a_task_without_a_base_is_refused_and_nothing_to_average_is_not_a_number():
    with pytest.raises(ValueError, match="no direct fine-tuning of task 'b'"):
        relative_gains({"a": 1.0, "b": 2.0}, {"a": 3.0})
    assert math.isnan(relative_gains({"a": 5.0}, {"a": 0.5}).average)


def test_spread_is_the_sample_standard_deviation():
    assert mean_and_spread([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7)))
    assert mean_and_spread([4.0]) == (4.0, 0.0)


def routes_of(*layers) -> TaskRoutes:
    routes_KLE = np.stack([np.array(layer, dtype=float) for layer in layers], axis=1)
    tasks = tuple(f"task{i}" for i in range(len(routes_KLE)))
    return TaskRoutes(tasks, tuple(range(len(layers))), routes_KLE)


def test_specialisation_is_1_for_own_experts_and_0_for_one_expert_or_the_average():
    own = [[1, 0], [0, 1], [1, 0], [0, 1]]
    one = [[1, 0]] * 4
    average = [[0.5, 0.5]] * 4
    routes = routes_of(own, one, average)
    np.testing.assert_allclose(routes.specialisation_L, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(routes.load_L, [1, 0, 1], atol=1e-12)
    assert routes.collapsed == pytest.approx(2 / 3)


def test_specialisation_of_soft_routes_is_their_mutual_information():
    routes = routes_of([[0.9, 0.1], [0.1, 0.9]])
    binary = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert routes.specialisation_L[0] == pytest.approx((math.log(2) - binary) / math.log(2))


def test_flops_of_minilm_are_those_of_its_matrices_times_the_experts_that_run():
    weights = 4 * 384 * 384 + 2 * 384 * 1536  # one layer
    dense = token_flops(6, weights)
    assert dense.forward == 6 * 2 * weights and dense.training == 3 * dense.forward
    assert token_flops(6, weights, routed=3, run_experts=1) == dense
    assert token_flops(6, weights, 3, 3).forward == (3 + 9) * 2 * weights


def test_pictures_are_written(tmp_path):
    gains = relative_gains({"a": 60.0, "b": 30.0}, {"a": 50.0, "b": 40.0})
    draw_gains({"learned": gains, "average": gains}, tmp_path / "gains.png")
    routes = routes_of([[1, 0], [0, 1]], [[0.5, 0.5], [0.2, 0.8]])
    draw_task_routes(routes, ["qa/binary", "classification/nli"], tmp_path / "routes.png")
    assert all(share_of_ink(tmp_path / name) > 0.01 for name in ("gains.png", "routes.png"))
