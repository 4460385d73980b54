"""Dropout without a stored mask: bits are a function of a seed and of where an element stands.

The seed is a number on the device, drawn there by torch's generator, so that a run that continues,
layers that run again in the backward pass and CUDA graphs draw what they should. The bits are
Philox 4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of two counters:
the row, and a column's quarter, since one call gives four numbers.
"""

import torch
from torch import Tensor

ROUNDS = 7
"""The fewest that pass BigCrush (Salmon et al., table 2)."""
_WORD = 1 << 32


def draw_seed(device: torch.device) -> Tensor:
    """Return a random seed on the device, int64, by torch's generator there; the host does not
    wait."""
    return torch.empty((), dtype=torch.int64, device=device).random_()


def check_probability(p: float) -> None:
    """Raise ValueError where p is no probability of dropping that leaves anything."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout = {p}: must be in [0, 1)")


def cut_of(p: float) -> int:
    """Return the int32 below which an element's bits mean that it is dropped."""
    return min(round(p * _WORD), _WORD - 1) - _WORD // 2


def scale_of(p: float) -> float:
    """Return what kept elements are multiplied by."""
    return 1 / (1 - p)


def kept(seed: Tensor, row_R: Tensor, first_column: Tensor | int, columns: int, p: float) -> Tensor:
    """Return which elements are kept, bool [..., columns], for rows [...]: as the kernels decide.

    first_column: a multiple of 4, one for all rows or one for each.
    """
    quarter = torch.arange(-(-columns // 4), device=row_R.device)
    row = row_R.long().unsqueeze(-1) + torch.zeros_like(quarter)
    first = first_column if isinstance(first_column, int) else first_column.unsqueeze(-1)
    words = _philox(seed, row, first // 4 + quarter + torch.zeros_like(row))
    bits = torch.stack(words, dim=-1).flatten(-2)[..., :columns]
    return bits - ((bits >= _WORD // 2) * _WORD) >= cut_of(p)


def _philox(seed: Tensor, c0: Tensor, c1: Tensor) -> tuple[Tensor, ...]:
    """Return four words in [0, 2^32), int64, of the counter (c0, c1, 0, 0)."""
    mask = _WORD - 1
    k0, k1 = seed & mask, (seed >> 32) & mask
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(ROUNDS):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64, whose bits are those of the product
        c0, c1 = ((b >> 32) & mask) ^ c1 ^ k0, b & mask
        c2, c3 = ((a >> 32) & mask) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3
