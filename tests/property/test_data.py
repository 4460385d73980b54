"""What holds for any lengths, mixture and number of ranks."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_moe_mtl.config.schema import MixtureSection
from ds_moe_mtl.data import collate, evaluation_batches
from ds_moe_mtl.data.batch import attention_groups
from ds_moe_mtl.data.loader import deal
from ds_moe_mtl.data.mixture import ExampleOrder
from tests.support.splits import spec_of_size, split_of_lengths

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=40)
quick = settings(max_examples=60, deadline=None)


@quick
@given(lengths, st.floats(0, 0.9))
def test_groups_cover_every_sequence_once_and_keep_to_the_padding(lengths, allowed):
    lengths_B = np.sort(np.array(lengths))[::-1]
    groups = attention_groups(lengths_B, allowed)
    assert [row for group in groups for row in range(*group)] == list(range(len(lengths)))
    seen = sum((last - first) * lengths_B[first] for first, last in groups)
    assert 1 - lengths_B.sum() / seen <= allowed + 1e-9


@quick
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.floats(0, 0.9))
def test_no_fewer_groups_would_keep_to_the_padding(lengths, allowed):
    lengths_B = np.sort(np.array(lengths))[::-1]
    count = len(attention_groups(lengths_B, allowed))
    for cuts in itertools.combinations(range(1, len(lengths)), max(count - 2, 0)):
        if count == 1:
            break
        edges = [0, *cuts, len(lengths)]
        seen = sum((b - a) * lengths_B[a] for a, b in itertools.pairwise(edges))
        assert 1 - lengths_B.sum() / seen > allowed - 1e-9


@quick
@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
def test_dealing_gives_out_every_example_once_in_hands_of_nearly_equal_size(tokens, hands):
    shares = deal(tokens, hands)
    assert sorted(itertools.chain(*shares)) == list(range(len(tokens)))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    loads = [sum(tokens[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0)


@quick
@given(lengths, st.integers(1, 4), st.integers(1, 300), st.integers(1, 3))
def test_evaluation_covers_a_split_exactly(lengths, world_size, room, per_example):
    lengths = lengths[: max(per_example, len(lengths) // per_example * per_example)]
    split = split_of_lengths(lengths, per_example)
    ranks = [evaluation_batches(split, 0, rank, world_size, room) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for batch in batches for row in batch.example_ids_B.tolist()]
    assert sorted(rows) == list(range(len(lengths)))


@quick
@given(lengths, st.randoms(use_true_random=False))
def test_a_batch_holds_the_tokens_of_its_sequences(lengths, random):
    split = split_of_lengths(lengths)
    rows = [(0, row) for row in range(len(lengths))]
    random.shuffle(rows)
    batch = collate(rows, [split])
    for place, row in enumerate(batch.example_ids_B.tolist()):
        tokens = slice(int(batch.cu_seqlens[place]), int(batch.cu_seqlens[place + 1]))
        assert batch.input_ids_T[tokens].tolist() == [1000 * row + k for k in range(lengths[row])]
        assert batch.position_ids_T[tokens].tolist() == list(range(lengths[row]))


@quick
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=4),
    st.sampled_from(["per_example", "sub_batches", "homogeneous"]),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_an_epoch_is_one_pass_whatever_the_sizes(counts, batching, sub_batches, factor, seed):
    specs = [spec_of_size(f"task{i}") for i in range(len(counts))]
    mixture = MixtureSection(batching=batching, sub_batches=sub_batches)
    order = ExampleOrder(mixture, specs, counts, sub_batches * factor, seed)
    position, pairs = order.start, []
    for _ in range(order.steps_per_epoch):
        batch, position = order.super_batch(position)
        assert 0 < len(batch) <= sub_batches * factor
        pairs.extend(batch)
    assert sorted(pairs) == [(t, e) for t, count in enumerate(counts) for e in range(count)]
