"""Fusions that bring the blocks to a common width and merge them element by element."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import RecipeError, unknown
from featcache.fitting.blocks import resolve_blocks, slices
from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.out_of_core import Stream, fit_with_routing

_ROUNDS = 5
_PROJECTIONS = ("pca", "random")


class PooledFusion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What sum, mean and max share: everything but the merging.

    Each column is standardised, each block projected to a common width, and each projected block
    divided by one number, so that its columns' mean square is 1 over the training rows and a wide
    block doesn't outweigh a narrow one. Then the blocks are turned so that their columns say the
    same as far as they can: by orthogonal Procrustes onto the first, and onto the mean of all
    (Gower 1975). Without that, column i of one has nothing to do with column i of another.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    width : int or None, default 256
        The common width. It is cut to what fits: the narrowest block, and for "pca" one less than
        the training rows. None takes all that fits.
    projection : {"pca", "random"}, default "pca"
        "pca": each block's first principal components, exact, so nothing is drawn; "random":
        each block times a matrix of Gaussian draws.
    random_state : int, RandomState or None, default 0
        Draws the matrices of "random".
    align : bool, default True
        Turn the blocks.

    Attributes
    ----------
    blocks_ : tuple of int
    width_ : int
        The common width that fits.
    concat_ : ConcatFusion
        What standardises, and finds the components.
    matrices_ : list of float64 arrays of shape (d_i, width_), or None
        What "random" drew.
    sizes_ : float64 array of shape (k,)
        What each projected block is divided by.
    rotations_ : float64 array of shape (k, width_, width_), or None
        What each projected block is then multiplied by.
    """

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        width: int | None = 256,
        projection: str = "pca",
        random_state: Any = 0,
        align: bool = True,
    ) -> None:
        self.blocks = blocks
        self.width = width
        self.projection = projection
        self.random_state = random_state
        self.align = align

    def fit(self, X: Any, y: Any = None) -> PooledFusion:
        """Learn the projections of X (n, d), two rows or more; y is ignored.

        Raises
        ------
        DataError
            If the blocks don't add up to d.
        UnknownName
            For another `projection`.
        RecipeError
            For a `width` that is no whole number above 0.
        """
        X = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2)  # (n, d)
        self._fit(X)
        return self._learn(self._products(X), len(X))

    def fit_stream(self, stream: Stream, y: Any = None, groups: Any = None) -> PooledFusion:
        """Learn the same of rows that stay on disk."""
        self.n_features_in_ = stream.width
        self._fit(stream)
        total = sum(self._products(block) for _, block in stream.blocks())
        return self._learn(np.asarray(total), len(stream))

    def _fit(self, X: NDArray[Any] | Stream) -> None:
        if self.projection not in _PROJECTIONS:
            raise unknown("projection", str(self.projection), _PROJECTIONS)
        self.blocks_ = resolve_blocks(self.blocks, self.n_features_in_)
        by_pca = self.projection == "pca"
        self.width_ = self._fitting_width(len(X) - 1 if by_pca else None)
        concat = ConcatFusion(self.blocks_, pca=self.width_ if by_pca else None)
        self.concat_ = fit_with_routing(concat, X, None)
        self.matrices_ = None if by_pca else self._draw()
        self.sizes_ = np.ones(len(self.blocks_))
        self.rotations_: NDArray[np.float64] | None = None

    def _products(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """The sums over rows of what each projected column is times each other, (k, w, k, w)."""
        k, width = len(self.blocks_), self.width_
        flat = self._tokens(X).reshape(len(X), k * width)  # (n, k * w)
        return np.asarray(flat.T @ flat, np.float64).reshape(k, width, k, width)

    def _learn(self, products: NDArray[np.float64], n: int) -> PooledFusion:
        """Set sizes and rotations, from the products of n rows."""
        k = len(self.blocks_)
        square = np.einsum("iwiw->i", products) / (n * self.width_)  # (k,)
        self.sizes_ = np.sqrt(np.where(square > 0, square, 1))  # (k,); a constant block stays 0
        if self.align and k > 1:
            size = self.sizes_.reshape(k, 1)
            level = products / size[:, :, None, None] / size[:, 0][None, None, :, None]
            self.rotations_ = procrustes(level.transpose(0, 2, 1, 3))
        self._n_features_out = self.width_
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """The merged vectors (n, width_), in X's own precision (float32 or float64)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        return self._merge(self._tokens(X))  # (n, width_)

    @staticmethod
    @abstractmethod
    def _merge(tokens: NDArray[Any]) -> NDArray[Any]:
        """(n, k, width) to (n, width)."""

    def _tokens(self, X: NDArray[Any]) -> NDArray[Any]:
        """Each row's projected blocks, (n, k, width_)."""
        columns = self.concat_.transform(X)  # (n, k * width_), or (n, d) for "random"
        if self.matrices_ is not None:
            pairs = zip(slices(self.blocks_), self.matrices_, strict=True)
            parts = [columns[:, part] @ matrix.astype(X.dtype) for part, matrix in pairs]
            columns = np.concatenate(parts, axis=1)  # (n, k * width_)
        tokens = columns.reshape(len(X), len(self.blocks_), self.width_)  # (n, k, width_)
        scaled: NDArray[Any] = tokens / self.sizes_[:, None].astype(X.dtype)  # (n, k, width_)
        rotations = getattr(self, "rotations_", None)  # an earlier version's model has none
        if rotations is None:
            return scaled
        turned = [scaled[:, i] @ turn.astype(X.dtype) for i, turn in enumerate(rotations)]
        return np.stack(turned, axis=1)  # (n, k, width_)

    def _draw(self) -> list[NDArray[np.float64]]:
        random = check_random_state(self.random_state)
        return [random.normal(size=(block, self.width_)) for block in self.blocks_]

    def _fitting_width(self, most: int | None) -> int:
        limits = [*self.blocks_, *([] if most is None else [most])]
        if self.width is None:
            return min(limits)
        whole = isinstance(self.width, (int, np.integer)) and not isinstance(self.width, bool)
        if not whole or self.width < 1:
            raise RecipeError(f"width is {self.width!r}", "Give a whole number above 0, or null.")
        return min(int(self.width), *limits)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def procrustes(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations (k, w, w) after which k sets of columns differ least from their mean.

    Parameters
    ----------
    products : float64 array of shape (k, k, w, w)
        Of the columns of each set (n, w) with those of each other.
    """
    k, width = len(products), products.shape[-1]
    turns = np.stack([np.eye(width), *(_onto(products[i, 0]) for i in range(1, k))])  # (k, w, w)
    for _ in range(_ROUNDS if k > 2 else 0):  # of two, the first round is the last
        turns = np.stack([_onto(np.einsum("jab,jbc->ac", products[i], turns)) for i in range(k)])
    return turns


def _onto(product: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation R of A that comes nearest to B, from A'B (w, w); Schönemann 1966."""
    left, _, right = np.linalg.svd(product)
    turn: NDArray[np.float64] = left @ right
    return turn


class SumFusion(PooledFusion):
    """The sum of the projected blocks; see `PooledFusion`."""

    @staticmethod
    def _merge(tokens: NDArray[Any]) -> NDArray[Any]:
        merged: NDArray[Any] = tokens.sum(axis=1)  # (n, width)
        return merged


class MeanFusion(PooledFusion):
    """The mean of the projected blocks: the sum, over k; see `PooledFusion`."""

    @staticmethod
    def _merge(tokens: NDArray[Any]) -> NDArray[Any]:
        merged: NDArray[Any] = tokens.mean(axis=1)  # (n, width)
        return merged


class MaxFusion(PooledFusion):
    """The largest of the projected blocks, element by element; see `PooledFusion`."""

    @staticmethod
    def _merge(tokens: NDArray[Any]) -> NDArray[Any]:
        merged: NDArray[Any] = tokens.max(axis=1)  # (n, width)
        return merged


class HadamardFusion(PooledFusion):
    """What "hadamard" was before it was learned; models that are kept of it name this class.

    The signed k-th root of the product of the k projected blocks.
    """

    @staticmethod
    def _merge(tokens: NDArray[Any]) -> NDArray[Any]:
        product = tokens.prod(axis=1)  # (n, width)
        root = np.abs(product) ** (1 / tokens.shape[1])  # (n, width)
        merged: NDArray[Any] = np.copysign(root, product)  # (n, width)
        return merged
