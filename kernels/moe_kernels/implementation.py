"""Which implementation of an operator runs: plain PyTorch, Triton or CUDA C++."""

import importlib.util
import os

import torch

IMPLEMENTATIONS = ("auto", "torch", "triton", "cuda")


def resolve_impl(impl: str, device: torch.device | str) -> str:
    """Return the implementation that runs on `device`: "torch", "triton" or "cuda".

    "auto" is Triton on a GPU whose driver is active and plain PyTorch elsewhere. One that is asked
    for by name either runs or raises ValueError with the reason: there is no quiet fall-back.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    device = torch.device(device)
    if impl == "auto":
        return "triton" if device.type == "cuda" and _why_not_triton(device) is None else "torch"
    reason = {"torch": lambda: None, "triton": lambda: _why_not_triton(device)}.get(
        impl, lambda: _why_not_cuda(device)
    )()
    if reason is not None:
        raise ValueError(f'impl="{impl}" cannot run here: {reason}; allowed: "auto", "torch"')
    return impl


def interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def upcasts(dtype: torch.dtype) -> bool:
    """Return whether kernels take products of 16-bit tiles in float32: in the interpreter, which
    has none of bfloat16 (float16 ones are made of bfloat16 pairs here and there).
    """
    return interpreting() and dtype != torch.float32


def check_kernel_dtype(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError if the GPU kernels cannot compute with the tensor's type."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name} is {tensor.dtype}: kernels take float32, float16 or bfloat16")


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return the tensor in one piece of memory; None stays None."""
    return None if tensor is None else tensor.contiguous()


def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cpu":
        return None if interpreting() else "the tensors are on the CPU, Triton needs a GPU"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, Triton needs a CUDA GPU"
    return None if torch.cuda.is_available() else "no GPU driver is active"


def _why_not_cuda(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the tensors are on {device.type}, CUDA C++ needs a CUDA GPU"
    if not torch.cuda.is_available():
        return "no GPU driver is active"
    from moe_kernels.cuda.extension import why_not_buildable

    # The experts' products, and routing's gradients, stay in Triton.
    return _why_not_triton(device) or why_not_buildable()
