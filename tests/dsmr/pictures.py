"""Written pictures, as tests look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from dsmr.plots import DPI


def picture(path: Path) -> np.ndarray:
    """The picture's pixels, float [height, width, 3]."""
    return imread(path)[..., :3]


def coloured(pixels: np.ndarray) -> np.ndarray:
    """bool [height, width]: neither white, grey nor black; the colour bar at the right cut off."""
    inside = pixels[:, :-DPI]
    return inside.max(-1) - inside.min(-1) > 0.15


def is_colour(pixels: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(pixels - np.array(to_rgb(colour))).max(-1) < 0.01
