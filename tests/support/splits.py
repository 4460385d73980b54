"""Small tokenised splits made of numbers, for tests that need no text."""

from collections.abc import Sequence

import numpy as np

from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.tasks import TaskSpec


def split_of_lengths(lengths: Sequence[int], per_example: int = 1) -> EncodedSplit:
    """A split with sequences of these lengths, `per_example` of them an example.

    Token k of sequence n is 1000 * n + k; the label of a sequence is its number.
    """
    ids = [1000 * n + np.arange(length) for n, length in enumerate(lengths)]
    count = len(lengths)
    return EncodedSplit(
        input_ids=np.concatenate([*ids, []]).astype(np.int32),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        second_start=np.array(lengths, dtype=np.int32) // 2,
        labels=np.arange(count, dtype=np.float32),
        weights=np.full(count, 1 / per_example, dtype=np.float32),
        questions=np.arange(count) // per_example,
        parts=np.zeros(count, dtype=np.int8),
    )


def spec_of_size(name: str, published_size: int = 0) -> TaskSpec:
    """A two-class task of that published size."""
    labels = ("no", "yes")
    return TaskSpec(name, "classification", ("text",), labels=labels, published_size=published_size)
