"""What a calibration makes of the times of its thin copies."""

import pytest

from ds_moe_mtl.benchmark.calibration import Copy, copies, extended


def seconds_of(copy: Copy, rest: float, layer: float, experts: float) -> float:
    """Return a step's seconds where each layer takes its own, and more if it has experts."""
    return rest + layer * copy.layers + experts * copy.sparse


@pytest.mark.parametrize(
    "model",
    [Copy(12, 12), Copy(12, 6), Copy(12, 1), Copy(12, 0), Copy(2, 1), Copy(3, 2), Copy(1, 1)],
)
def test_times_that_are_sums_over_layers_are_found_again(model):
    thin = {copy: seconds_of(copy, 5.0, 2.0, 3.0) for copy in copies(model)}
    assert extended(thin, model) == pytest.approx(seconds_of(model, 5.0, 2.0, 3.0))
    assert len(thin) == len(copies(model)) and all(copy.layers <= 3 for copy in thin)


def test_a_layer_never_costs_less_than_nothing():
    thin = {Copy(1, 1): 9.0, Copy(3, 1): 8.0, Copy(3, 3): 7.0}
    assert extended(thin, Copy(12, 6)) == 7.0
