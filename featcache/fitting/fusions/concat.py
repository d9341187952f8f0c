"""The blocks side by side: scaled, and reduced where asked."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import RecipeError, unknown
from featcache.fitting.blocks import resolve_blocks, slices
from featcache.fitting.out_of_core import Stream, standardise

_SCALES = ("standard", "l2", "none")


class ConcatFusion(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The blocks side by side, each brought to a common scale.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    scale : {"standard", "l2", "none"}, default "standard"
        "standard": each column to mean 0 and standard deviation 1 over the training rows (a
        constant column becomes 0); "l2": each row of each block to length 1 (zero rows stay
        zero), nothing is learned; "none": X as it is.
    pca : int, float or None, default None
        Principal components of each scaled block, by itself: at most this many (fewer where the
        block or the training rows have fewer), or the share of the block's variance to keep, above
        0 and below 1. None keeps the columns. The components are exact, so nothing is drawn.

    Attributes
    ----------
    blocks_ : tuple of int
        The blocks that were found.
    widths_ : tuple of int
        Width of each block after the PCA; `blocks_` without one.
    scaler_ : StandardScaler or None
        What "standard" learned.
    pca_ : list of PCA, or None
        One a block.
    """

    search_space: ClassVar[dict[str, Any]] = {"scale": ["standard", "l2"]}

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        scale: str = "standard",
        pca: float | None = None,
    ) -> None:
        self.blocks = blocks
        self.scale = scale
        self.pca = pca

    def fit(self, X: Any, y: Any = None) -> ConcatFusion:
        """Learn the scale, and the components, of X (n, d); y is ignored.

        Raises
        ------
        DataError
            If the blocks don't add up to d.
        UnknownName
            For another `scale`.
        RecipeError
            For a `pca` that is neither a number of components nor a share.
        """
        self._check()
        rows = 1 if self.pca is None else 2
        X = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=rows)
        self.blocks_ = resolve_blocks(self.blocks, X.shape[1])
        self.scaler_ = StandardScaler().fit(X) if self.scale == "standard" else None
        self.widths_, self.pca_ = self.blocks_, None
        if self.pca is not None:
            scaled = self._scaled(X)  # (n, d)
            self.pca_ = [components(scaled[:, part], self.pca) for part in slices(self.blocks_)]
            self.widths_ = tuple(int(pca.n_components_) for pca in self.pca_)
        return self

    def fit_stream(self, stream: Stream, y: Any = None, groups: Any = None) -> ConcatFusion:
        """Learn the same of rows that stay on disk: one pass, and one more for the components."""
        self._check()
        self.n_features_in_ = stream.width
        self.blocks_ = resolve_blocks(self.blocks, stream.width)
        self.scaler_ = standardise(stream) if self.scale == "standard" else None
        self.widths_, self.pca_ = self.blocks_, None
        if self.pca is not None:
            # What it does so far, without components, is a step of its own.
            scaled = stream.then(copy(self))
            self.pca_ = streamed_components(scaled, slices(self.blocks_), self.pca)
            self.widths_ = tuple(int(pca.n_components_) for pca in self.pca_)
        return self

    def _check(self) -> None:
        if self.scale not in _SCALES:
            raise unknown("scale", str(self.scale), _SCALES)
        _check_pca(self.pca)

    def transform(self, X: Any) -> NDArray[Any]:
        """The scaled and reduced X (n, sum of `widths_`), in X's precision (float32 or float64)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        scaled = self._scaled(X)  # (n, d)
        if self.pca_ is None:
            return scaled
        pairs = zip(self.pca_, slices(self.blocks_), strict=True)
        return np.concatenate([pca.transform(scaled[:, part]) for pca, part in pairs], axis=1)

    def as_module(self) -> Any:
        """The fitted fusion as a torch module."""
        from featcache.fitting.networks import Concat

        check_is_fitted(self)
        return Concat(self.blocks_, self.scaler_, self.scale == "l2", self.pca_ or ())

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """The columns' names: the input's, or x0, x1, …; after a PCA block0_pca0, block0_pca1, …"""
        check_is_fitted(self)
        if self.pca_ is not None:
            named = [
                f"block{i}_pca{j}" for i, width in enumerate(self.widths_) for j in range(width)
            ]
            return np.asarray(named, dtype=object)
        if input_features is None:
            input_features = getattr(self, "feature_names_in_", None)
        if input_features is None:
            input_features = [f"x{i}" for i in range(self.n_features_in_)]
        return np.asarray(input_features, dtype=object)

    def _scaled(self, X: NDArray[Any]) -> NDArray[Any]:
        if self.scaler_ is not None:
            scaled: NDArray[Any] = self.scaler_.transform(X)  # (n, d)
            return scaled
        if self.scale == "none":
            return np.array(X)  # (n, d)
        return np.concatenate([unit_rows(X[:, part]) for part in slices(self.blocks_)], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def unit_rows(block: NDArray[Any]) -> NDArray[Any]:
    """Rows of length 1, zero rows as they are.

    sklearn's normalize leaves rows shorter than about 1e-6 alone in float32; dividing by the
    largest value first keeps the squares of such rows from vanishing.
    """
    peak = np.abs(block).max(axis=1, keepdims=True)  # (n, 1)
    block = block / np.where(peak > 0, peak, 1)  # (n, d)
    length = np.linalg.norm(block, axis=1, keepdims=True)  # (n, 1)
    unit: NDArray[Any] = block / np.where(length > 0, length, 1)  # (n, d)
    return unit


def _check_pca(pca: Any) -> None:
    if pca is None:
        return
    whole = isinstance(pca, (int, np.integer)) and not isinstance(pca, bool) and pca >= 1
    share = isinstance(pca, (float, np.floating)) and 0 < pca < 1
    if not whole and not share:
        raise RecipeError(
            f"pca is {pca!r}",
            "Give a number of components (128), or a share of the variance (0.95).",
        )


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
