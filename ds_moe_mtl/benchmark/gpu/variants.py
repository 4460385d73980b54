"""What a step is measured with, by name: overrides of the run's configuration.

A way of computing that a key switches is one line here. What has no key (it is in the code, or it
is not) is measured against an earlier version of the repository: --before FOLDER.
"""

from collections.abc import Mapping

DEFAULT = "default"
"""What a run takes where nothing is asked for: what has been verified on a card."""

VARIANTS: Mapping[str, tuple[str, ...]] = {
    DEFAULT: (),
    "filled": ("train.fill_tokens=1024",),
    "graphs": ("train.fill_tokens=1024", "train.cuda_graphs=true"),
}
"""Overrides by name; each is measured whole, so a later one repeats what it takes of the others."""
