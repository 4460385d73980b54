"""The learning rate against its closed form."""

import pytest

from ds_moe_mtl.training.schedule import learning_rate


def test_it_rises_to_the_peak_and_falls_to_almost_nothing():
    rates = [learning_rate(step, 10, 4, 1.0) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(0, 5, 0, 2.0) == 2.0


def test_a_run_of_warm_up_alone_ends_at_the_peak():
    assert learning_rate(3, 4, 4, 1.0) == 1.0
