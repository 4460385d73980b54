"""The DeepSpeed releases whose private contracts this package is written for."""

from packaging.version import Version

FIRST, BELOW = Version("0.19.4"), Version("0.20")
"""0.19.4 brought the sparse gate contract (indices, locations, gates) that TaskGate answers in."""

RANGE = f">={FIRST},<{BELOW}"


def found_version() -> Version:
    """Return the installed DeepSpeed's version, without what names its build."""
    import deepspeed

    return Version(deepspeed.__version__.split("+")[0])


def check_deepspeed_version() -> None:
    """Raise RuntimeError where DeepSpeed is not a release whose insides are known."""
    found = found_version()
    if not FIRST <= found < BELOW:
        raise RuntimeError(
            f"deepspeed {found} is not one whose MoE gate and engine are known here; "
            f"allowed: {RANGE}"
        )
