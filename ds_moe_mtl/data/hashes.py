"""Hashes of many short sequences of numbers at once.

N sequences, T numbers in all.
"""

import numpy as np

_AT_ONCE = 1 << 20  # bounds the memory of the products


def segment_hashes(values_T: np.ndarray, offsets: np.ndarray, seeds_N: np.ndarray) -> np.ndarray:
    """One uint64 a sequence values_T[offsets[n] : offsets[n + 1]], different for another seed.

    Its length and its seed, and the sum over its numbers of (mixed number) * (odd factor of its
    place). Sums and products are modulo 2**64.
    """
    lengths_N = np.diff(offsets)
    longest = int(lengths_N.max(initial=1))
    places = mixed(np.arange(longest, dtype=np.uint64)) | np.uint64(1)
    hashes_N = mixed(seeds_N.astype(np.uint64)) ^ mixed(~lengths_N.astype(np.uint64))
    first = 0
    while first < len(lengths_N):
        begin = int(offsets[first])
        last = int(np.searchsorted(offsets, begin + _AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        starts = offsets[first:last] - begin
        lengths = lengths_N[first:last]
        mixed_T = mixed(values_T[begin : int(offsets[last])].astype(np.uint64))
        place_T = np.arange(len(mixed_T)) - np.repeat(starts, lengths)
        sums = np.zeros(len(mixed_T) + 1, dtype=np.uint64)
        np.cumsum(mixed_T * places[place_T], out=sums[1:])
        hashes_N[first:last] += sums[starts + lengths] - sums[starts]
        first = last
    return hashes_N


def grouped_hashes(hashes_N: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """One uint64 a group of neighbours, from its members' hashes in their order.

    groups_N: non-decreasing from 0.
    """
    starts = np.flatnonzero(np.diff(groups_N, prepend=-1))
    return segment_hashes(hashes_N, np.append(starts, len(hashes_N)), np.zeros(len(starts)))


def mixed(values: np.ndarray) -> np.ndarray:
    """Each number as one whose bits all depend on it (the finaliser of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
