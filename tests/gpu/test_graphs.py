"""CUDA graphs of the encoder against its eager passes, to the bit; filled shapes against plain.

In rehearsal a record runs the passes again in a graph's place.
"""

import copy

import pytest
import torch

from ds_moe_mtl.models.attention.choice import PACKED_FLASH
from ds_moe_mtl.models.graphs import CudaGraphs, as_second_runs
from ds_moe_mtl.models.shapes import Shapes
from tests.support.gpu import DEVICE, HERE, needs_gpu
from tests.support.recorded import LENGTHS, assert_same, batch_of, network_of, step

pytestmark = needs_gpu
DTYPE = torch.bfloat16


def on_device(kind: str, dropout: float):
    network = network_of(kind, dropout).to(DEVICE, DTYPE)
    assert not HERE or network.attention_on(DEVICE, DTYPE) == PACKED_FLASH
    return network


@pytest.mark.parametrize("kind", ["mt_dense", "mt_tag"])
def test_graphs_repeat_the_eager_passes_to_the_bit_with_dropout(kind):
    network = on_device(kind, 0.1)
    eager = copy.deepcopy(network)
    network.shapes = Shapes(64, network.recorded(CudaGraphs() if HERE else as_second_runs))
    eager.shapes = Shapes(64, eager.recorded(as_second_runs))
    eager.shapes.graphs.most = 0
    for seed, name in enumerate(["first", "second"] * 5):
        batch = batch_of(LENGTHS[name], seed)
        expected = step(eager, batch)
        assert_same(step(eager, batch), expected, rtol=0, atol=0)  # it repeats itself at all
        assert_same(step(network, batch), expected, rtol=0, atol=0)
    counts = network.shapes.graphs.counts
    # On a GPU both batches are one bucket: 64 tokens, 64 sequences, at most 16 tokens each.
    assert counts["recorded"] == (1 if HERE else 2)
    assert counts["replayed"] == (8 if HERE else 6)


@pytest.mark.parametrize("kind", ["mt_dense", "mt_tag"])
def test_filling_changes_rounding_alone(kind):
    network = on_device(kind, 0.0)
    exact = copy.deepcopy(network).to("cpu", torch.float64)
    batch = batch_of(LENGTHS["first"])
    plain = step(network, batch)
    network.shapes = Shapes(64)
    filled = step(network, batch)
    assert filled[1] == plain[1]
    host = {k: x.cpu() if isinstance(x, torch.Tensor) else x for k, x in batch.items()}
    truth = step(exact, host)
    for name, reference in truth[2].items():
        theirs, ours = (
            float((found[2][name].double().cpu() - reference).norm()) for found in (plain, filled)
        )
        allowed = 2 * theirs + torch.finfo(DTYPE).eps * float(reference.norm()) + 1e-6
        print(f"{name}: error {ours:.2e}, allowed {allowed:.2e}")
        assert ours <= allowed, name
