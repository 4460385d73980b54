"""Which Triton kernels have been checked and timed on which kind of card, and which run by default.

What has never run on a kind of card is not what a run takes there unless it is asked for by name:
the interpreter and a compiler show that a kernel is right, not that it is right and fast there.
"""

from typing import NamedTuple

import torch

from moe_kernels.implementation import resolve_impl

VERIFIED = {
    ("moe", (9, 0)): "docs/gpu.md, one H100",
}
"""Where it is told, by kernels and capability. moe: the layer's; moe_gated: the layer's for experts
that are gated or lack a bias; update: update_kernels; else encoder_kernels.OPERATORS."""


class Choice(NamedTuple):
    """impl: "torch" or "triton"; why: what decided, in words for the lines that a run begins with;
    "" where nothing but plain PyTorch could be meant."""

    impl: str
    why: str


def verified(name: str, capability: tuple[int, int]) -> bool:
    """Return whether the kernels of that name have been verified on such cards."""
    return (name, tuple(capability)) in VERIFIED


def choose(name: str, impl: str, device: torch.device | str) -> Choice:
    """Return what runs on `device`: for "auto" Triton where the kernels have been verified.

    impl: auto | torch | triton. Raises ValueError for one asked for by name that cannot run.
    """
    device = torch.device(device)
    if impl != "auto":
        return Choice(resolve_impl(impl, device), "asked for")
    if device.type != "cuda" or resolve_impl("auto", device) != "triton":
        return Choice("torch", "")
    capability = torch.cuda.get_device_capability(device)
    kind = f"compute capability {capability[0]}.{capability[1]}"
    if verified(name, capability):
        return Choice("triton", f"verified on {kind}")
    return Choice("torch", f"Triton's is not verified on {kind}")
