"""One unpadded batch: order, segments, positions, spans, groups."""

import numpy as np
import pytest
import torch

from ds_moe_mtl.data import collate
from ds_moe_mtl.data.batch import attention_groups
from tests.support.splits import split_of_lengths


def test_sequences_come_longest_first_with_everything_that_is_theirs():
    splits = [split_of_lengths([3, 5]), split_of_lengths([4])]
    batch = collate([(0, 0), (1, 0), (0, 1)], splits)
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 12]
    assert batch.input_ids_T.tolist() == [1000, 1001, 1002, 1003, 1004, 0, 1, 2, 3, 0, 1, 2]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    assert batch.token_type_ids_T.tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1]
    assert batch.task_ids_B.tolist() == [0, 1, 0]
    assert batch.example_ids_B.tolist() == [1, 0, 0]
    assert batch.labels_B.tolist() == [1.0, 0.0, 0.0]
    assert (batch.spans_B22 == -1).all()
    assert (batch.num_tokens, batch.num_sequences) == (12, 3)


def test_types_are_what_the_network_expects():
    batch = collate([(0, 0)], [split_of_lengths([3])])
    for name in ("input_ids_T", "token_type_ids_T", "position_ids_T", "task_ids_B", "questions_B"):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.labels_B.dtype == batch.weights_B.dtype == torch.float32


def test_a_batch_without_sequences_is_whole():
    batch = collate([], [split_of_lengths([3])])
    assert (batch.num_tokens, batch.num_sequences, batch.groups) == (0, 0, ())
    assert batch.cu_seqlens.tolist() == [0] and batch.spans_B22.shape == (0, 2, 2)
    assert batch.attention_padding == 0 and batch.input_ids_T.dtype == torch.int64


def test_sequences_of_one_length_are_one_group():
    assert attention_groups(np.array([7, 7, 7])) == ((0, 3),)


def test_groups_are_the_fewest_that_keep_the_padding_low():
    # One group: 400 of 140 real. Two: 100 + 3 * 20 = 160 (12.5% padding).
    lengths = np.array([100, 20, 10, 10])
    assert attention_groups(lengths, 0.2) == ((0, 1), (1, 4))
    assert attention_groups(lengths, 0.0) == ((0, 1), (1, 2), (2, 4))
    assert attention_groups(lengths, 0.7) == ((0, 4),)


def test_padding_is_the_share_of_tokens_that_are_not_real():
    batch = collate([(0, i) for i in range(4)], [split_of_lengths([100, 20, 10, 10])])
    assert batch.groups == ((0, 1), (1, 4))
    assert batch.attention_padding == pytest.approx(20 / 160)


def test_a_batch_moves_to_a_device_with_all_its_tensors():
    batch = collate([(0, 0)], [split_of_lengths([3])]).to("meta")
    assert batch.input_ids_T.is_meta and batch.weights_B.is_meta and batch.groups == ((0, 1),)
