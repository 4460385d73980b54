"""What a step is measured with, by name: overrides of the run's configuration.

A way of computing that a key switches is one line here. What has no key (it is in the code, or it
is not) is measured against an earlier version of the repository: --before FOLDER.
"""

from collections.abc import Mapping

DEFAULT = "default"
"""What a run takes where nothing is asked for: what has been verified on a card."""

VARIANTS: Mapping[str, tuple[str, ...]] = {
    DEFAULT: (),
    "triton": ("train.update_kernels=triton", "train.encoder_kernels=triton"),
    "update": ("train.update_kernels=triton", "train.encoder_kernels=torch"),
    "graphs": ("train.encoder_kernels=torch", "train.fill_tokens=1024", "train.cuda_graphs=true"),
    "torch": ("train.update_kernels=torch", "train.encoder_kernels=torch"),
}
"""Overrides by name, the most telling first: the time of a part may not do for all. triton: the
update and the encoder's layers on our kernels; update: the update alone; torch: none of them."""

REHEARSED = (DEFAULT, "graphs")
"""What is tried without a card: the others are minutes of Triton's interpreter."""


def variants_of(request: dict) -> dict[str, tuple[str, ...]]:
    """Return the variants that a part measures."""
    return {name: VARIANTS[name] for name in VARIANTS if request["gpu"] or name in REHEARSED}
