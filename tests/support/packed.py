"""A packed batch of random tokens, as a network of many tasks takes it."""

from collections.abc import Sequence

import torch

LENGTHS = (7, 4, 11)


def packed_batch(task: int, lengths: Sequence[int] = LENGTHS, types: int = 1) -> dict:
    """Return the arguments of MultiTaskNetwork.forward; every sequence is of one task.

    types: token types that are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    return {
        "input_ids_T": torch.randint(5, 290, (tokens,), generator=generator),
        "token_type_ids_T": torch.randint(0, types, (tokens,), generator=generator),
        "position_ids_T": torch.cat([torch.arange(length) for length in lengths]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "groups": None,
        "task_ids_B": torch.full((len(lengths),), task),
        "spans_B22": torch.tensor([[[1, 2], [2, 4]]] * len(lengths)),
        "questions_B": torch.arange(len(lengths)),
    }
