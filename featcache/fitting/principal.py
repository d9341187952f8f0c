"""Principal components of a block, exact, in memory or from one pass over rows on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from featcache.fitting.stream import Stream


def components(block: NDArray[Any], pca: float) -> PCA:
    """A PCA of one block (n, d), of at most n - 1 components: centred rows span no more.

    Parameters
    ----------
    block : float array of shape (n, d)
    pca : int or float
        How many components, or the share of the variance to keep.
    """
    n, d = block.shape
    # Both solvers are exact; the first takes time in d³, the second in n²d.
    solver = "covariance_eigh" if n >= d else "full"
    with np.errstate(invalid="ignore"):  # a constant block has no variance to take a share of
        return PCA(_asked(pca, n, d), svd_solver=solver).fit(block)


def streamed_components(stream: Stream, parts: Sequence[slice], pca: float) -> list[PCA]:
    """The same for each part of a stream's columns, from their means and covariances."""
    n = len(stream)
    total = np.zeros(stream.width)
    grams = [np.zeros((part.stop - part.start,) * 2) for part in parts]
    for _, block in stream.blocks():
        total += block.sum(axis=0, dtype=np.float64)
        for gram, part in zip(grams, parts, strict=True):
            gram += block[:, part].T @ block[:, part]  # (d, d)
    means = [total[part] / n for part in parts]
    return [_of_moments(n, mean, gram, pca) for mean, gram in zip(means, grams, strict=True)]


def _of_moments(n: int, mean: NDArray[Any], gram: NDArray[Any], pca: float) -> PCA:
    """The PCA of n rows with this mean (d,) and sum of squares (d, d).

    It is that of any rows with the same mean and covariance; 2 d of them are made.
    """
    d = len(mean)
    covariance = (gram - n * np.outer(mean, mean)) / (n - 1)
    values, vectors = np.linalg.eigh(covariance)  # (d,), (d, d)
    spread = (vectors * np.sqrt(np.maximum(values, 0) * (2 * d - 1) / 2)).T  # (d, d)
    with np.errstate(invalid="ignore"):
        found = PCA(_asked(pca, n, d), svd_solver="covariance_eigh").fit(
            np.concatenate([spread, -spread]) + mean
        )
    found.n_samples_ = n
    found.singular_values_ = np.sqrt(found.explained_variance_ * (n - 1))
    for name in ("components_", "mean_", "explained_variance_", "singular_values_"):
        setattr(found, name, getattr(found, name).astype(np.float32))
    return found


def _asked(pca: float, n: int, d: int) -> float:
    return pca if isinstance(pca, (float, np.floating)) else min(int(pca), d, n - 1)
