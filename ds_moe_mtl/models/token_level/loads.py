"""How many tokens each expert gets while a network runs, from what its layers count anyway.

L sparse layers, E experts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


class TokenCounts:
    """Counts, inside a `with` block, the tokens of each call of a network by layer and expert."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._total_LE = network, None

    def __enter__(self) -> "TokenCounts":
        """Start to count."""
        self._hook = self._network.register_forward_hook(self._add)
        return self

    def __exit__(self, *exception: object) -> None:
        """Count no more."""
        self._hook.remove()

    def counts_LE(self) -> np.ndarray | None:
        """Return the tokens so far, float64; None of a network without token-level experts."""
        return None if self._total_LE is None else self._total_LE.cpu().numpy()

    def _add(self, network: nn.Module, inputs: tuple, outputs) -> None:
        counts = outputs.counts
        if len(counts):
            counts_LE = torch.stack(list(counts)).double()
            self._total_LE = counts_LE if self._total_LE is None else self._total_LE + counts_LE


def load_shares(counts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return each expert's share of its layer's tokens [L, E] over several counts; None of none."""
    found = [counts_LE for counts_LE in counts if counts_LE is not None]
    if not found:
        return None
    total_LE = np.sum(found, axis=0)
    return total_LE / np.maximum(total_LE.sum(axis=1, keepdims=True), 1)
