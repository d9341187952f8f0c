"""Features in a cache on disk, without any extraction."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from featcache.images.manifest import Images, strings
from featcache.store.cache import Cache
from featcache.store.feature_file import checksums, create, to_digests
from featcache.store.key import Key


def store(
    folder: Path,
    X: np.ndarray,
    y: list[str],
    blocks: tuple[int, ...],
    dtype: str = "float32",
    seed: int = 0,
    split: list[str] | None = None,
    groups: list[str] | None = None,
    views: tuple[str, ...] = (),
    name: str = "toy",
    absent: tuple[int, ...] = (),
) -> tuple[Cache, Images]:
    """A cache with the rows of X (n, d) in one file for each block, each in an order of its own.

    A view holds the same vectors plus 1. Rows in `absent` have no vector, and failed.csv says so.
    """
    n = len(X)
    images = Images(
        name=name,
        ids=strings(f"{i:05d}.png" for i in range(n)),
        sha256=strings(f"{i * 7919 + 1:064x}" for i in range(n)),
        labels=strings(y),
        groups=strings(groups or [""] * n),
        split=strings(split or [""] * n),
    )
    cache = Cache(folder)
    cache.note_images(images)
    cache.note_failed(images, dict.fromkeys(absent, ("decode", "broken")))
    rng = np.random.default_rng(seed)
    there = np.setdiff1d(np.arange(n), absent)
    for number, view in enumerate(("none", *views)):
        for i, width in enumerate(blocks):
            start = sum(blocks[:i])
            order = rng.permutation(there)
            key = Key(
                f"net{i}", "test", "none", "none", "penultimate", {"view": view}, "fp32", dtype
            )
            values = X[order, start : start + width] + number
            path = cache.path(name, key)
            with create(
                cache.partial(name, key), key, to_digests(images.sha256[order]), width
            ) as file:
                file.write(np.arange(len(order)), values.astype(dtype))
                file.finish(path)
    return cache, images


def reseal(path: Path) -> None:
    """Make the checksums of a file fit its vectors again, after these were changed by hand."""
    with h5py.File(path, "r+") as file:
        file["checksum"][...] = checksums(file["sha256"][...], file["features"][...])


def blobs(
    n: int = 300,
    blocks: tuple[int, ...] = (6, 4),
    classes: int = 3,
    signal: float = 1.0,
    seed: int = 0,
) -> tuple[np.ndarray, list[str]]:
    """Vectors (n, d) around class centres, class after class as in a folder, and their labels."""
    rng = np.random.default_rng(seed)
    codes = np.sort(np.arange(n) % classes)
    centres = rng.standard_normal((classes, sum(blocks))) * signal
    X = centres[codes] + rng.standard_normal((n, sum(blocks)))
    return X.astype(np.float32), [f"class{code}" for code in codes]
