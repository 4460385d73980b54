"""Dev examples that training has seen: the same tokens in both splits.

N sequences, T tokens.
"""

import numpy as np

from ds_moe_mtl.data.encode import EncodedSplit

_TOKENS_AT_ONCE = 1 << 20  # bounds the memory of the products


def seen_in_training(train: EncodedSplit, dev: EncodedSplit) -> int:
    """Dev examples all of whose sequences are sequences of training examples, labels aside.

    Sequences are compared by 64-bit hashes of their tokens, segments included.
    """
    in_train_N = np.isin(_hashes(dev), _hashes(train))
    unseen = np.unique(dev.questions[~in_train_N])
    return dev.num_examples - len(unseen)


def _hashes(split: EncodedSplit) -> np.ndarray:
    """One uint64 a sequence: the sum over its tokens of (mixed token) * (odd factor of its place).

    Sums and products are modulo 2**64.
    """
    lengths_N = split.lengths
    longest = int(lengths_N.max(initial=1))
    places = _mixed(np.arange(longest, dtype=np.uint64)) | np.uint64(1)
    hashes_N = _mixed(split.second_start.astype(np.uint64)) ^ _mixed(~lengths_N.astype(np.uint64))
    first = 0
    while first < len(lengths_N):
        begin = int(split.offsets[first])
        last = int(np.searchsorted(split.offsets, begin + _TOKENS_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        starts = split.offsets[first:last] - begin
        lengths = lengths_N[first:last]
        ids_T = _mixed(split.input_ids[begin : int(split.offsets[last])].astype(np.uint64))
        place_T = np.arange(len(ids_T)) - np.repeat(starts, lengths)
        sums = np.zeros(len(ids_T) + 1, dtype=np.uint64)
        np.cumsum(ids_T * places[place_T], out=sums[1:])
        hashes_N[first:last] += sums[starts + lengths] - sums[starts]
        first = last
    return hashes_N


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each number as one whose bits all depend on it (the finaliser of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
