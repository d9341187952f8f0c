"""Which images a fine-tuned backbone has seen the labels of: a data set in its feature file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from featcache.errors import CacheRefused
from featcache.store.file import to_digests, to_hex

NAME = "trained_on"


def read_trained_on(path: Path) -> frozenset[str]:
    """The sha256 of the images that trained the backbone of a feature file; most have none.

    Raises
    ------
    CacheRefused
        Where the file holds them in another shape.
    """
    with h5py.File(path, "r", locking=False) as file:
        if NAME not in file:
            return frozenset()
        digests = file[NAME][...]
        if digests.ndim != 2 or digests.shape[1] != 32 or digests.dtype != np.uint8:
            raise CacheRefused(
                f"{path}: its dataset {NAME!r} is of another shape or type",
                "Delete it and run the extract command again.",
            )
        return frozenset(to_hex(digests))


def write_trained_on(path: Path, sha256: Iterable[str]) -> None:
    """Record in a feature file which images trained its backbone, in place of what is there.

    Parameters
    ----------
    path : Path
    sha256 : iterable of str
        Hex digests of the images' bytes.
    """
    digests = to_digests(np.array(sorted(set(sha256)), np.str_))  # (n, 32)
    with h5py.File(path, "r+", locking=False) as file:
        if NAME in file:
            del file[NAME]
        file.create_dataset(NAME, data=digests)
