"""What a test can say of a picture without knowing how it was drawn."""

from pathlib import Path

import numpy as np
from PIL import Image


def share_of_ink(path: Path) -> float:
    """Return the share of a picture's pixels that are not of its corner's colour.

    Raises PIL.UnidentifiedImageError for a file that is no picture.
    """
    pixels_HWC = np.asarray(Image.open(path).convert("RGB"))
    return float((pixels_HWC != pixels_HWC[0, 0]).any(axis=2).mean())
