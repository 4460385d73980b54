"""A point of a grid: section.key=value, one per key."""

from collections.abc import Sequence


def point_name(point: Sequence[str]) -> str:
    """Return a point of a grid as a folder's name."""
    pairs = [item.partition("=") for item in point]
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in pairs) or "default"
