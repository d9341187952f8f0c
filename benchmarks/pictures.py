"""Images for benchmarks: like photographs in what they take to decode and to resize."""

from __future__ import annotations

from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

_CELLS = (4, 12, 48)  # a side: what is large in the picture, and what is small


def make_images(folder: Path, count: int, size: tuple[int, int], ending: str) -> Path:
    """A folder of images, in two classes; the same ones each time."""
    tasks = [(folder / f"class{i % 2}" / f"{i:06d}.{ending}", i, size) for i in range(count)]
    with Pool() as pool:
        pool.map(make_image, tasks, chunksize=8)
    return folder


def make_image(task: tuple[Path, int, tuple[int, int]]) -> None:
    """An image of a path, a seed and a size: smooth colours at several scales, and grain."""
    path, seed, size = task
    rng = np.random.default_rng(seed)
    picture: Image.Image | None = None
    for cells in _CELLS:
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = coarse.resize(size, Image.Resampling.BICUBIC)
        picture = layer if picture is None else Image.blend(picture, layer, 0.3)
    pixels = np.asarray(picture).astype(np.int16)
    grain = rng.integers(-8, 9, pixels.shape, dtype=np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))
