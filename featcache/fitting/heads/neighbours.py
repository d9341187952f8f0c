"""Heads that go by distance: to the nearest rows, or to the nearest class mean."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import DataError, RecipeError
from featcache.fitting.out_of_core import Stream


class KNNHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """sklearn's KNeighborsClassifier, with defaults for embeddings and for few rows.

    Parameters
    ----------
    n_neighbors : int, default 10
        Neighbours that vote; all training rows where there are fewer.
    weights : {"distance", "uniform"}, default "distance"
        "distance": a neighbour's vote counts by the inverse of its distance.
    metric : str, default "cosine"
        "cosine" compares the directions of standardised rows; or "euclidean", "manhattan", …
    n_jobs : int or None, default None
        Jobs for the search; None means 1.

    Attributes
    ----------
    classes_ : array of labels
    neighbours_ : KNeighborsClassifier
    """

    search_space: ClassVar[dict[str, Any]] = {"n_neighbors": ("int", 1, 50)}

    def __init__(
        self,
        n_neighbors: int = 10,
        weights: str = "distance",
        metric: str = "cosine",
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.metric = metric
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any) -> KNNHead:
        """Keep X (n, d) with labels y (n,) of any kind.

        Raises
        ------
        RecipeError
            For an `n_neighbors` that is no whole number above 0.
        """
        k = self.n_neighbors
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise RecipeError(f"n_neighbors is {k!r}", "Give a whole number above 0.")
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])  # (n, d), (n,)
        check_classification_targets(y)
        self.neighbours_ = KNeighborsClassifier(
            min(int(k), len(X)), weights=self.weights, metric=self.metric, n_jobs=self.n_jobs
        ).fit(X, y)
        self.classes_ = self.neighbours_.classes_
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Each class's share of the votes (n, classes), float64, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        votes = np.asarray(self.neighbours_.predict_proba(X), dtype=np.float64)  # (n, classes)
        proba: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)  # (n, classes)
        return proba

    def predict(self, X: Any) -> NDArray[Any]:
        """The label of each row (n,) with the most votes; of equals the first."""
        best = self.predict_proba(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted


class NearestMeanHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The class whose mean is nearest; expects standardised columns.

    The probabilities are those of Gaussian classes, equally frequent, with one variance for all
    columns and classes. Columns that say the same count each for itself, so with many of them the
    probabilities are far too sure; the labels are not concerned.

    Attributes
    ----------
    classes_ : array of labels
    means_ : float64 array of shape (classes, d)
    variance_ : float
        Mean, over rows and columns, of the squared deviation from the class mean.
    """

    def fit(self, X: Any, y: Any) -> NearestMeanHead:
        """Learn the means from X (n, d) with labels y (n,) of any kind.

        Raises
        ------
        DataError
            If y has one class.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])  # (n, d), (n,)
        codes = self._codes(y)
        rows = [X[codes == code] for code in range(len(self.classes_))]
        self.means_ = np.stack([part.mean(axis=0, dtype=np.float64) for part in rows])
        pairs = zip(rows, self.means_, strict=True)
        total = sum(float(np.square(part - mean).sum()) for part, mean in pairs)
        self.variance_ = total / X.size or 1.0  # 0 where each class is one point
        return self

    def fit_stream(self, stream: Stream, y: Any, groups: Any = None) -> NearestMeanHead:
        """Learn the same of rows that stay on disk, in two passes."""
        self.n_features_in_ = stream.width
        codes = self._codes(np.asarray(y))
        sums = np.zeros((len(self.classes_), stream.width))
        for rows, block in stream.blocks():
            sums += np.eye(len(sums))[codes[rows]].T @ block  # (classes, d)
        self.means_ = sums / np.bincount(codes)[:, None]  # (classes, d)
        total = 0.0
        for rows, block in stream.blocks():
            total += float(np.square(block - self.means_[codes[rows]]).sum())
        self.variance_ = total / (len(stream) * stream.width) or 1.0
        return self

    def as_module(self) -> Any:
        """The fitted head as a torch module that gives logits."""
        from featcache.fitting.networks import linear

        check_is_fitted(self)
        # |x - m|² = |x|² - 2 x·m + |m|², and |x|² is the same for all classes.
        means, variance = self.means_, self.variance_
        return linear(means / variance, -np.square(means).sum(axis=1) / (2 * variance))

    def _codes(self, y: NDArray[Any]) -> NDArray[np.intp]:
        """Each label's position in `classes_`."""
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"NearestMeanHead needs two classes, y has 1 class: {self.classes_[0]}",
                "Add images of another class.",
            )
        return np.asarray(codes, np.intp)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        proba: NDArray[np.float64] = softmax(self._scores(X), axis=1)  # (n, classes)
        return proba

    def predict(self, X: Any) -> NDArray[Any]:
        """The label of the nearest mean of each row (n,)."""
        best = self._scores(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def _scores(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)  # (n, d)
        squared = euclidean_distances(X, self.means_, squared=True)  # (n, classes)
        scores: NDArray[np.float64] = -squared / (2 * self.variance_)  # (n, classes)
        return scores
