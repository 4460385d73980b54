"""dropout_residual_norm: what stands behind attention and behind the FFN in BERT's layer.

T tokens, D hidden size.
"""

import torch
from torch import Tensor

from encoder_kernels.dropout import check_probability, draw_seed
from encoder_kernels.residual_norm.reference import dropout_residual_norm_reference
from moe_kernels.first_order import first_order
from moe_kernels.implementation import check_kernel_dtype, resolve_impl

LARGEST_WIDTH = 4096
"""A program holds whole rows."""


def dropout_residual_norm(
    x: Tensor, residual: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float = 1e-5,
    dropout: float = 0.0, *, seed: Tensor | None = None, impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Return LayerNorm(dropout(x) + residual) [..., D], summed and normed in float32.

    seed: int64 of one element on x's device that says what is dropped; None: drawn there by
    torch's generator. Raises ValueError for shapes, types or a width that it cannot take.
    """
    name = resolve_impl(impl, x.device)
    if name == "cuda":
        raise ValueError(f'impl="{impl}" has no dropout_residual_norm; allowed: "torch", "triton"')
    check_probability(dropout)
    width = x.shape[-1]
    if residual.shape != x.shape or weight_D.shape != (width,) or bias_D.shape != (width,):
        raise ValueError(
            f"x {tuple(x.shape)}, residual {tuple(residual.shape)}, weight "
            f"{tuple(weight_D.shape)}, bias {tuple(bias_D.shape)}: must be twice [..., D], "
            f"then twice [D]"
        )
    if residual.dtype != x.dtype:
        raise ValueError(f"residual is {residual.dtype}, x is {x.dtype}: must be one type")
    if dropout > 0 and seed is None:
        seed = draw_seed(x.device)
    flat = (x.reshape(-1, width), residual.reshape(-1, width))
    if name == "torch":
        y_TD = dropout_residual_norm_reference(*flat, weight_D, bias_D, eps, dropout, seed)
        return y_TD.view(x.shape)
    check_kernel_dtype("x", x)
    if not 1 <= width <= LARGEST_WIDTH:
        raise ValueError(f"rows are {width} wide; the kernels take 1 to {LARGEST_WIDTH}")
    flat = (tensor.contiguous() for tensor in flat)
    y_TD = ResidualNorm.apply(*flat, weight_D, bias_D, seed if dropout > 0 else None, eps, dropout)
    return y_TD.view(x.shape)


class ResidualNorm(torch.autograd.Function):
    """LayerNorm(dropout(x_TD) + residual_TD) on the Triton kernels."""

    @staticmethod
    def forward(ctx, x_TD, residual_TD, weight_D, bias_D, seed, eps: float, dropout: float):
        from encoder_kernels.residual_norm.launch import launch_residual_norm

        y_TD, rows = launch_residual_norm(
            x_TD, residual_TD, weight_D.contiguous(), bias_D.contiguous(), seed, eps, dropout
        )
        ctx.save_for_backward(*rows)
        ctx.bias_dtype, ctx.dropout = bias_D.dtype, dropout
        return y_TD

    @staticmethod
    @first_order
    def backward(ctx, grad_y_TD):
        from encoder_kernels.residual_norm.launch import Rows, launch_residual_norm_grad

        grads = launch_residual_norm_grad(
            grad_y_TD.contiguous(), Rows(*ctx.saved_tensors), ctx.bias_dtype, ctx.dropout
        )
        return *grads, None, None, None
