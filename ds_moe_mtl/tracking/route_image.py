"""A small picture of routes for a page that shows many: tasks down, layers and experts across.

A cell is an expert's share of a task's tokens, from dark (none) to light (all). Drawn with Pillow
in milliseconds: it is made at every evaluation. `ds-moe-mtl routes` draws the large one.

L layers, E experts, H W the picture's pixels.
"""

from collections.abc import Mapping

import numpy as np

CELL = 10
"""Pixels of a cell's side."""

_MARGIN, _LINE, _LETTER = 4, 12, 6
_ANCHORS = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=float
)
"""Viridis at 0, 25, 50, 75 and 100%."""


def route_image(shares: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return uint8 [H, W, 3] of each task's shares [L, E], whose rows sum to 1."""
    from PIL import Image, ImageDraw

    layers, experts = next(iter(shares.values())).shape
    left = _MARGIN + _LETTER * min(24, max(len(name) for name in shares)) + _MARGIN
    panel = experts * CELL + _MARGIN
    width = left + layers * panel
    picture = Image.new("RGB", (width, _LINE + len(shares) * CELL + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for layer in range(layers):
        draw.text((left + layer * panel, 0), str(layer), fill="black", font_size=10)
    for row, (name, shares_LE) in enumerate(shares.items()):
        top = _LINE + row * CELL
        draw.text((_MARGIN, top - 1), name[:24], fill="black", font_size=10)
        cells_LE3 = colours(shares_LE)
        for layer in range(layers):
            strip = cells_LE3[layer].repeat(CELL, axis=0)[None].repeat(CELL, axis=0)
            picture.paste(Image.fromarray(strip), (left + layer * panel, top))
    return np.asarray(picture)


def colours(shares: np.ndarray) -> np.ndarray:
    """Return uint8 colours [..., 3] of shares from 0 to 1."""
    places = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(shares, places, _ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
