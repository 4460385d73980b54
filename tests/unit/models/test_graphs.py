"""Recorded passes and filled shapes: nothing of them may be seen but in the time.

A record runs the encoder again on its own tensors here, in a CUDA graph's place; all else (buckets,
filling, copies, gradients, rare shapes) is what runs on a GPU.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_moe_mtl.models.filling import filling_sequences, sequences_needed
from ds_moe_mtl.models.graphs import EncoderGraphs, as_second_runs
from ds_moe_mtl.models.shapes import SEQUENCES_STEP, Shapes, bucket_of
from tests.support.recorded import LENGTHS, assert_same, batch_of, network_of, step

lengths_of_a_batch = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@given(lengths_of_a_batch, st.integers(0, 100), st.integers(0, 5))
def test_filling_sequences_hold_the_filling_and_none_is_the_longest(lengths, fill, empty):
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    size = sum(lengths) + fill
    wanted = sequences_needed(lengths, size) + empty
    filled, told = filling_sequences(ends, lengths, size, wanted)
    assert filled.dtype == torch.int32 and filled.diff().tolist() == list(told)
    assert torch.equal(filled[: len(ends)], ends) and len(told) == wanted
    assert filled[-1] == size and max(told) == max(lengths) and min(told) >= 0


@given(lengths_of_a_batch, st.integers(0, 100))
def test_a_bucket_bounds_its_batches_and_forgets_their_lengths(lengths, fill):
    size = sum(lengths) + fill
    bucket = bucket_of(lengths, size, needs_lengths=False)
    assert sum(bucket.lengths) == size and max(bucket.lengths) >= max(lengths)
    assert bucket.sequences % SEQUENCES_STEP == 0
    assert bucket.sequences >= sequences_needed(lengths, size)
    assert bucket_of([*lengths[1:], lengths[0]], size, False) == bucket


@pytest.mark.parametrize("kind", ["mt_dense", "mt_switch", "mt_tag"])
def test_filling_up_to_a_multiple_changes_rounding_alone(kind):
    network = network_of(kind, dropout=0.0)
    batch = batch_of(LENGTHS["first"])
    expected = step(network, batch)
    network.shapes = Shapes(64)
    with watched_tokens(network) as seen:
        found = step(network, batch)
    assert seen == [64]
    assert_same(found, expected, rtol=1e-5, atol=2e-6)
    assert sum(map(sum, found[1])) in (0, 2 * sum(LENGTHS["first"]))  # the filling is not counted
    network.eval()
    with watched_tokens(network) as seen, torch.no_grad():
        network(**batch)
    assert seen == [27]


def test_sequences_of_filling_attend_among_themselves_alone():
    network = network_of("mt_tag", dropout=0.0)
    batch = batch_of(LENGTHS["first"])
    network.shapes = Shapes(64, network.recorded(as_second_runs))
    network.shapes.graphs.often = 1000  # as they come
    found = step(network, batch)
    network.shapes = Shapes()
    assert_same(found, step(network, batch), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["mt_dense", "mt_tag"])
def test_records_repeat_the_same_passes_to_the_bit_with_dropout(kind):
    network = network_of(kind, dropout=0.1)
    eager = copy.deepcopy(network)
    network.shapes = Shapes(32, network.recorded(as_second_runs))
    eager.shapes = Shapes(32, eager.recorded(as_second_runs))
    eager.shapes.graphs.most = 0
    names = ["first", "second", "first", "first", "second", "first", "second", "same tokens"]
    for seed, name in enumerate(names):
        batch = batch_of(LENGTHS[name], seed)
        found, expected = step(network, batch), step(eager, batch)
        assert_same(found, expected, rtol=0, atol=0)
    counts = network.shapes.graphs.counts
    assert counts == {"eager": 5, "recorded": 2, "replayed": 3}
    assert eager.shapes.graphs.counts == {"eager": len(names)}


def test_weights_that_moved_are_recorded_anew_and_changed_ones_are_seen():
    network = network_of("mt_tag", dropout=0.0)
    network.shapes = Shapes(32, network.recorded(as_second_runs))
    batch = batch_of(LENGTHS["first"])
    for _ in range(4):
        step(network, batch)
    graphs = network.shapes.graphs
    assert graphs.counts["recorded"] == 1
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.mul_(1.01)  # in place, as an update
    assert_same(step(network, batch), step(eager_copy(network), batch), rtol=0, atol=0)
    assert graphs.counts["recorded"] == 1
    for parameter in network.encoder.parameters():
        parameter.data = parameter.data * 1.01
    assert_same(step(network, batch), step(eager_copy(network), batch), rtol=0, atol=0)
    assert graphs.counts["recorded"] == 2


def eager_copy(network):
    """Return a copy that runs the same filled shapes, unrecorded."""
    shapes, network.shapes = network.shapes, Shapes()
    other = copy.deepcopy(network)
    network.shapes = shapes
    other.shapes = Shapes(32, other.recorded(as_second_runs))
    other.shapes.graphs.most = 0
    return other


def test_a_second_call_before_the_backward_pass_is_refused():
    weight = torch.ones(3, requires_grad=True)
    graphs = EncoderGraphs(
        lambda bucket, x: (x * weight, x.sum()), (weight,), as_second_runs, often=0
    )
    y, count = graphs("bucket", (torch.tensor([1.0, 2.0, 3.0]),))
    with pytest.raises(RuntimeError, match="one micro-batch a step"):
        graphs("bucket", (torch.tensor([4.0, 5.0, 6.0]),))
    y.sum().backward()
    assert weight.grad.tolist() == [1.0, 2.0, 3.0] and not count.requires_grad
    again, _ = graphs("bucket", (torch.tensor([4.0, 5.0, 6.0]),))
    assert again.tolist() == [4.0, 5.0, 6.0] and float(count) == 6.0


class watched_tokens:
    """Collects the tokens that pass through the encoder in the block."""

    def __init__(self, network) -> None:
        self.embeddings = network.encoder.transformer.embeddings

    def __enter__(self) -> list[int]:
        seen: list[int] = []
        self.hook = self.embeddings.register_forward_hook(
            lambda module, args, output: seen.append(output.shape[1])
        )
        return seen

    def __exit__(self, *exception) -> None:
        self.hook.remove()
