"""The shapes that a network's batches are brought to in training, and buckets of equal shapes.

B sequences, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ds_moe_mtl.models.filling import filling_sequences, sequences_needed
from ds_moe_mtl.models.graphs import EncoderGraphs, Tensors

SEQUENCES_STEP = 64
"""A bucket's sequences are a multiple of this. Our choice: of 960 examples' sequences, which differ
by some dozens from step to step, one or two buckets."""


class Bucket(NamedTuple):
    """What the host tells the encoder of a batch, so that all of a bucket launch the same.

    tokens, sequences: with the filling. lengths: of sequences, as attention is told them.
    """

    tokens: int
    sequences: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """multiple: tokens are filled up to a multiple of it. graphs: the encoder's passes, recorded a
    bucket; None: they are run as they come."""

    multiple: int = 1
    graphs: EncoderGraphs | None = None

    @property
    def records(self) -> bool:
        """Whether passes are recorded."""
        return self.graphs is not None

    def size_of(self, num_tokens: int) -> int:
        """Return the tokens that a batch is filled up to."""
        return -(-num_tokens // self.multiple) * self.multiple

    def run(
        self, per_token: Tensors, ends: Tensor, lengths: Sequence[int], needs_lengths: bool
    ) -> Tensors:
        """Return the body's outputs (graphs.EncoderGraphs) of a batch's tensors.

        per_token: ids, types, positions, gates and mask, filled up already; the body gets them
        with the sequences' ends in the fourth place. needs_lengths: as in bucket_of.
        """
        *tokens, gates_T, mask_T = per_token
        bucket = bucket_of(lengths, len(gates_T), needs_lengths)
        ends, filled = filling_sequences(ends, lengths, bucket.tokens, bucket.sequences)
        if needs_lengths:
            bucket = bucket._replace(lengths=filled)
        return self.graphs(bucket, (*tokens, ends, gates_T, mask_T))


NO_SHAPES = Shapes()
"""Batches as they come."""


def bucket_of(lengths: Sequence[int], size: int, needs_lengths: bool) -> Bucket:
    """Return the bucket of a batch filled up to `size` tokens.

    needs_lengths: attention's launches follow the batch's own lengths, and a bucket is then one
    batch's. Otherwise (flash reads where sequences lie on the device, and is told the tokens and
    the longest sequence) the lengths are others with the same sum, and the longest's next power of
    two for the largest: a bound is all that it has to be.
    """
    needed = sequences_needed(lengths, size)
    if needs_lengths:
        return Bucket(size, needed, tuple(lengths))
    longest = min(size, 1 << (max(lengths) - 1).bit_length())
    whole, rest = divmod(size, longest)
    stand_in = (longest,) * whole + ((rest,) if rest else ())
    sequences = -(-needed // SEQUENCES_STEP) * SEQUENCES_STEP
    return Bucket(size, sequences, stand_in)
