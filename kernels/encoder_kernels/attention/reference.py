"""Attention over packed sequences in plain PyTorch, sequence by sequence.

T tokens, H heads, d head size, B sequences, N tokens of one.
"""

import torch
from torch import Tensor

from encoder_kernels.attention.plan import LARGEST_BLOCK
from encoder_kernels.dropout import kept, scale_of


def attend_reference(
    q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, ends: Tensor, scale: float, dropout: float,
    seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return attention's output [T, H, d]: 0 for tokens in no sequence. ends: int [B + 1].

    The seed says which weights are dropped, in sequences of up to 128 tokens as the kernels do.
    """
    outputs, bounds = [], ends.tolist()
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        q_HNd, k_HNd, v_HNd = (x[start:stop].transpose(0, 1) for x in (q_THd, k_THd, v_THd))
        scores_HNN = torch.matmul(q_HNd * scale, k_HNd.transpose(1, 2))
        weights_HNN = torch.softmax(scores_HNN, dim=-1)
        if dropout > 0:
            mask_HNN = _kept(seed, start, stop, q_THd.shape[1], dropout)
            weights_HNN = weights_HNN * scale_of(dropout) * mask_HNN.to(weights_HNN.dtype)
        outputs.append(torch.matmul(weights_HNN, v_HNd).transpose(0, 1))
    outputs.append(torch.zeros_like(q_THd[bounds[-1] :]))
    return torch.cat(outputs)


def _kept(seed: Tensor, start: int, stop: int, heads: int, dropout: float) -> Tensor:
    """Return which weights [H, N, N] of the sequence of tokens [start, stop) are kept."""
    row_HN = torch.arange(start, stop, device=seed.device).expand(heads, -1)
    stride = -(-max(stop - start, LARGEST_BLOCK) // LARGEST_BLOCK) * LARGEST_BLOCK
    first_HN = torch.arange(heads, device=seed.device)[:, None].expand_as(row_HN) * stride
    return kept(seed, row_HN, first_HN, stop - start, dropout)
