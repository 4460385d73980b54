"""Which implementation runs the experts' FFNs, and why."""

import torch

from moe_kernels.ffn.activation import ACTIVATIONS
from moe_kernels.implementation import resolve_impl
from moe_kernels.verified import Choice, choose


def choose_ffn(impl: str, device: torch.device | str, activation: str, biased: bool) -> Choice:
    """Return what runs FFNs of that activation, with both biases or not, on `device`.

    "auto" takes Triton for gated FFNs, and for those without a bias, where these kernels have been
    verified; for the others as resolve_impl says. Raises ValueError for one asked for by name that
    cannot run.
    """
    if biased and not ACTIVATIONS[activation].gated:
        return Choice(resolve_impl(impl, device), "")
    return choose("moe_gated", impl, device)
