"""The DeepSpeed releases whose private contracts this package is written for."""

from packaging.version import Version

FIRST, BELOW = Version("0.19.4"), Version("0.20")
"""0.19.4 brought the sparse gate contract (indices, locations, gates) that TaskGate answers in."""


def check_deepspeed_version() -> None:
    """Raise RuntimeError where DeepSpeed is not a release whose insides are known."""
    import deepspeed

    found = Version(deepspeed.__version__.split("+")[0])
    if not FIRST <= found < BELOW:
        raise RuntimeError(
            f"deepspeed {found} is not one whose MoE gate and engine are known here; "
            f"allowed: >={FIRST},<{BELOW}"
        )
