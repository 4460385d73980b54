"""The DeepSpeed releases whose private MoE contracts this package is written for."""

import deepspeed
from packaging.version import Version

FIRST, BELOW = Version("0.19.4"), Version("0.20")
"""0.19.4 brought the sparse gate contract (indices, locations, gates) that TaskGate answers in."""


def check_deepspeed_version() -> None:
    """Raise RuntimeError where DeepSpeed is not a release whose MoE contract is known."""
    found = Version(deepspeed.__version__.split("+")[0])
    if not FIRST <= found < BELOW:
        raise RuntimeError(
            f"deepspeed {found} has another MoE gate contract; allowed: >={FIRST},<{BELOW}"
        )
