"""Compact bilinear pooling: every column of one block times every column of another, sketched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import RecipeError
from featcache.fitting.blocks import slices
from featcache.fitting.concat import ConcatFusion, unit_rows
from featcache.fitting.linked import fit_linked
from featcache.fitting.stream import Stream, standardise

_CHUNK = 4096


class BilinearFusion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The outer product of each pair of blocks, pressed into `width` columns.

    The tensor sketch of a pair is the circular convolution of the count sketches of its two
    blocks, taken as a product of Fourier transforms; its inner products estimate those of the
    outer products, which are never formed. The sketches of all pairs are added. One block is paired
    with itself, under a second count sketch. Then the signed square root; each row is brought to
    length 1, and each column standardised over the training rows, as the heads expect.

    Pham and Pagh, 2013, Fast and scalable polynomial kernels via explicit feature maps,
    https://doi.org/10.1145/2487575.2487591; Gao et al., 2016, Compact bilinear pooling,
    https://arxiv.org/abs/1511.06062.

    Parameters
    ----------
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    width : int, default 2048
        Columns of the sketch. The error of an inner product falls with its square root.
    scale : {"standard", "l2", "none"}, default "l2"
        What is done to the blocks before, see `ConcatFusion`. Products of standardised columns
        forget on which side of the mean both were, and with it most of what a linear head can
        use; hence not "standard".
    random_state : int, RandomState or None, default 0
        Draws the count sketches.

    Attributes
    ----------
    blocks_ : tuple of int
    concat_ : ConcatFusion
        What scales the blocks.
    sketches_ : list of sparse arrays of shape (d_i, width)
        One a block, two for a single block; a 1 or -1 in each row.
    scaler_ : StandardScaler
        What standardises the sketches.
    """

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        width: int = 2048,
        scale: str = "l2",
        random_state: Any = 0,
    ) -> None:
        self.blocks = blocks
        self.width = width
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> BilinearFusion:
        """Draw the sketches and learn the scales from X (n, d); y is ignored.

        Raises
        ------
        DataError
            Where the blocks don't add up to d.
        UnknownName
            For another `scale`.
        RecipeError
            For a `width` that is no whole number above 0.
        """
        X = validate_data(self, X, dtype=[np.float32, np.float64])  # (n, d)
        self._fit(X)
        self.scaler_ = StandardScaler().fit(self._normalised(X))
        return self

    def fit_stream(self, stream: Stream, y: Any = None, groups: Any = None) -> BilinearFusion:
        """Learn the same of rows that stay on disk."""
        self.n_features_in_ = stream.width
        self._fit(stream)
        self.scaler_ = standardise(stream.then(FunctionTransformer(self._normalised)))
        return self

    def _fit(self, X: NDArray[Any] | Stream) -> None:
        whole = isinstance(self.width, (int, np.integer)) and not isinstance(self.width, bool)
        if not whole or self.width < 1:
            raise RecipeError(f"width is {self.width!r}", "Give a whole number above 0.")
        self.concat_ = fit_linked(ConcatFusion(self.blocks, self.scale), X, None)
        self.blocks_ = self.concat_.blocks_
        random = check_random_state(self.random_state)
        widths = self.blocks_ * 2 if len(self.blocks_) == 1 else self.blocks_
        self.sketches_ = [_count_sketch(block, int(self.width), random) for block in widths]
        self._n_features_out = int(self.width)

    def transform(self, X: Any) -> NDArray[Any]:
        """The standardised sketches (n, width), in X's own precision (float32 or float64)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        fused: NDArray[Any] = self.scaler_.transform(self._normalised(X))  # (n, width)
        return fused

    def _normalised(self, X: NDArray[Any]) -> NDArray[Any]:
        """The signed square roots of the sketches, in rows of length 1: (n, width)."""
        scaled = self.concat_.transform(X)  # (n, d)
        parts = [self._sketch(scaled[i : i + _CHUNK]) for i in range(0, len(scaled), _CHUNK)]
        sketch = np.concatenate(parts)  # (n, width)
        return unit_rows(np.copysign(np.sqrt(np.abs(sketch)), sketch))  # (n, width)

    def _sketch(self, scaled: NDArray[Any]) -> NDArray[Any]:
        """The tensor sketches of the pairs of blocks, added: (n, width)."""
        parts = [scaled[:, part] for part in slices(self.blocks_)]  # k of (n, d_i)
        if len(parts) == 1:
            parts *= 2
        pairs = zip(parts, self.sketches_, strict=True)
        counts = [part @ sketch.astype(part.dtype) for part, sketch in pairs]  # k of (n, width)
        waves = [rfft(count, axis=1) for count in counts]  # k of (n, width // 2 + 1)
        product = sum(one * other for one, other in combinations(waves, 2))
        sketch: NDArray[Any] = irfft(product, n=self._n_features_out, axis=1)  # (n, width)
        return sketch

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _count_sketch(block: int, width: int, random: np.random.RandomState) -> Any:
    """A sparse (block, width) array that adds or subtracts each column at a place drawn for it."""
    places = random.randint(width, size=block)
    signs = random.choice([-1.0, 1.0], size=block)
    return csr_array((signs, (np.arange(block), places)), shape=(block, width))
