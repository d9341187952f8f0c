"""Small images that look like something."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """An RGB image that differs for each seed and has structure at several scales."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(
        np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    )
