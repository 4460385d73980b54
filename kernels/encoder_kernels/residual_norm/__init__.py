"""LayerNorm of a residual sum whose new part is dropped out, as one operator."""

from encoder_kernels.residual_norm.function import LARGEST_WIDTH, dropout_residual_norm

__all__ = ["LARGEST_WIDTH", "dropout_residual_norm"]
