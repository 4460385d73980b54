"""dropout + residual + LayerNorm in plain PyTorch. T tokens, D hidden size."""

import torch
from torch import Tensor, nn

from encoder_kernels.dropout import kept, scale_of


def dropout_residual_norm_reference(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float,
    dropout: float, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return LayerNorm(dropout(x) + residual); the seed says what is dropped."""
    if dropout > 0:
        rows, width = x_TD.shape
        row_T = torch.arange(rows, device=x_TD.device)
        x_TD = x_TD * scale_of(dropout) * kept(seed, row_T, 0, width, dropout).to(x_TD.dtype)
    z_TD = x_TD + residual_TD
    return nn.functional.layer_norm(z_TD, weight_D.shape, weight_D, bias_D, eps)
