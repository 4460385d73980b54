"""Which kernels an encoder's layers run on: torch's own, or those of encoder_kernels."""

from typing import NamedTuple

import torch

import moe_kernels
from ds_moe_mtl.config import RunConfig, UserError
from encoder_kernels import LARGEST_HEAD, OPERATORS
from moe_kernels.verified import verified


class EncoderKernels(NamedTuple):
    """Which of encoder_kernels' OPERATORS, in their order, an encoder's layers run on."""

    attention: bool = False  # of short sequences; longer ones take torch's flash
    norm: bool = False  # dropout, residual sum and LayerNorm
    projection: bool = False  # query, key and value as one product

    def __str__(self) -> str:
        names = [name for name, runs in zip(OPERATORS, self, strict=True) if runs]
        return " + ".join(names).replace("_", " ") or "torch"


TORCH = EncoderKernels()


def kernels_on(
    option: str, device: torch.device, dtype: torch.dtype, head_size: int
) -> EncoderKernels:
    """Return what train.encoder_kernels = `option` means there.

    auto: what is recorded as verified on that kind of card, in 16 bits; torch: nothing; triton:
    all. Raises ValueError, one line, for triton where it cannot run.
    """
    if option == "triton":
        fault = why_not_triton(device, dtype, head_size)
        if fault:
            raise ValueError(
                f"train.encoder_kernels = triton cannot run here: {fault}; allowed: auto, torch"
            )
        return EncoderKernels(True, True, True)
    if option == "torch" or device.type != "cuda" or why_not_triton(device, dtype, head_size):
        return TORCH
    capability = torch.cuda.get_device_capability(device)
    return EncoderKernels(*(verified(name, capability) for name in OPERATORS))


def why_not_triton(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Return why encoder_kernels cannot run there; "" where they can."""
    if head_size > LARGEST_HEAD:
        return f"attention heads of size {head_size}; it takes up to {LARGEST_HEAD}"
    if device.type == "cuda" and head_size % 8:
        return f"attention heads of size {head_size}; torch's flash, for long sequences, takes 8s"
    if device.type == "cuda" and dtype not in (torch.bfloat16, torch.float16):
        return f"it takes 16 bits, not {dtype}"
    try:
        moe_kernels.resolve_impl("triton", device)
    except ValueError as error:
        return str(error).removeprefix('impl="triton" cannot run here: ').partition("; allowed")[0]
    return ""


def check_kernels(config: RunConfig, device_type: str) -> None:
    """Raise UserError where a run asks for kernels that cannot run on its devices."""
    device = torch.device(device_type)
    asked = {"moe.impl": config.moe.impl, "train.update_kernels": config.train.update_kernels}
    for key, impl in asked.items():
        try:
            moe_kernels.resolve_impl(impl, device)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error
    dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    try:
        kernels_on(config.train.encoder_kernels, device, dtype, head_size=8)
    except ValueError as error:
        raise UserError(str(error)) from error
