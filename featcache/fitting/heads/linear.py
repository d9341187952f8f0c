"""Linear heads that choose their penalty on rows of the training set that they hold out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from featcache.errors import DataError, RecipeError
from featcache.fitting.calibration import HeldOut, best_on_path, held_out_rows, temperature
from featcache.fitting.class_weights import class_weights
from featcache.fitting.out_of_core import SAMPLE, Stream, fit_logreg

Floats = NDArray[np.float64]

# If nothing can be held out: the strong L2 that some 2,000 standardised columns need.
_C, _ALPHA, _SHRINKAGE = 0.01, 1000.0, 0.3
_ALONE = 4_000_000  # numbers in X, below which one thread of BLAS is faster than several


class LogRegHead(LogisticRegression):  # type: ignore[misc]
    """sklearn's LogisticRegression; of C None, the one with the lowest log loss on held-out rows.

    Attributes
    ----------
    C_ : float
        The C that was given or chosen; all else is sklearn's.
    held_out_ : (rows, probabilities)
        Of the rows that were held out, if any were; not kept with a saved model.
    """

    search_space: ClassVar[dict[str, Any]] = {"C": ("log", 1e-4, 1.0)}
    held_out_: HeldOut
    usual: ClassVar[dict[str, float]] = {"C": _C}  # if no rows can choose it
    path: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)

    def fit(self, X: Any, y: Any, groups: Any = None) -> LogRegHead:
        """Fit on X (n, d) with labels y (n,) of any kind.

        Rows that share a value of `groups` (n,) are held out together.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS)  # (n, d), (n,)
        check_classification_targets(y)
        # Its products are short, and threads of BLAS and OpenMP wait for each other between them:
        # on 1,200 x 1,280 with two cores one thread of BLAS takes an eighth of the time of two.
        with threadpool_limits(1 if X.size < _ALONE else None, "blas"):
            self.C_ = self._chosen(X, y, groups) if self.C is None else self.C
            return self._take(self._plain(self.C_).fit(X, y))

    def fit_stream(self, stream: Stream, y: Any, groups: Any = None) -> LogRegHead:
        """Fit on rows that stay on disk; C is chosen on a sample of them that fits in memory."""
        y, self.C_ = np.asarray(y), self.C
        if self.C is None:
            size = max(1, SAMPLE // (4 * stream.width))
            rows = np.sort(np.random.default_rng(0).permutation(len(y))[:size])
            mine = None if groups is None else np.asarray(groups)[rows]
            self.C_ = self._chosen(stream.read(rows), y[rows], mine)
            held, proba = getattr(self, "held_out_", (np.arange(0), np.empty(0)))
            self.held_out_ = (rows[held], proba)
        plain = self._plain(self.C_)
        fit_logreg(plain, stream, y)
        return self._take(plain)

    def as_module(self) -> Any:
        """The fitted head as a torch module that gives logits."""
        from featcache.fitting.networks import logits

        check_is_fitted(self)
        return logits(self)

    def _chosen(self, X: NDArray[Any], y: NDArray[Any], groups: Any) -> float:
        codes, weights, folds = _hold_out(self, y, groups)
        if not folds:
            return _C

        def loss(proba: Floats, rows: NDArray[np.intp]) -> float:
            true = np.maximum(proba[np.arange(len(rows)), codes[rows]], np.finfo(np.float64).eps)
            return -_mean(np.log(true), weights, rows)

        plain = self._plain(_C).set_params(warm_start=True)
        best, self.held_out_ = best_on_path(
            plain, "C", self.path, lambda one, X: one.predict_proba(X).astype(np.float64), loss,
            X, y, folds,
        )  # fmt: skip
        return best

    def _plain(self, C: float) -> LogisticRegression:
        return LogisticRegression(**{**self.get_params(), "C": _C if C is None else C})

    def _take(self, fitted: LogisticRegression) -> LogRegHead:
        return _take(self, fitted)  # type: ignore[no-any-return]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags


class RidgeHead(RidgeClassifier):  # type: ignore[misc]
    """sklearn's RidgeClassifier; of alpha None, the one with the least squares on held-out rows.

    It has decision values and no probabilities.

    Attributes
    ----------
    alpha_ : float
        The alpha that was given or chosen; all else is sklearn's.
    """

    search_space: ClassVar[dict[str, Any]] = {"alpha": ("log", 1.0, 1e5)}
    usual: ClassVar[dict[str, float]] = {"alpha": _ALPHA}  # if no rows can choose it
    path: ClassVar[tuple[float, ...]] = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0, 30.0, 10.0)

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeHead:
        """Fit on X (n, d) with labels y (n,) of any kind.

        Rows that share a value of `groups` (n,) are held out together.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS)  # (n, d), (n,)
        check_classification_targets(y)
        self.alpha_ = self._chosen(X, y, groups) if self.alpha is None else self.alpha
        plain = RidgeClassifier(**{**self.get_params(), "alpha": self.alpha_})
        return _take(self, plain.fit(X, y))  # type: ignore[no-any-return]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.classifier_tags.multi_label = False
        return tags

    def _chosen(self, X: NDArray[Any], y: NDArray[Any], groups: Any) -> float:
        codes, weights, folds = _hold_out(self, y, groups)
        if not folds:
            return _ALPHA
        targets = 2 * np.eye(codes.max() + 1)[codes] - 1  # (n, classes)

        def loss(values: Floats, rows: NDArray[np.intp]) -> float:
            wanted = targets[rows] if values.ndim > 1 else targets[rows, 1]
            squared = np.square(values - wanted).reshape(len(rows), -1).sum(axis=1)  # (m,)
            return _mean(squared, weights, rows)

        plain = RidgeClassifier(**{**self.get_params(), "alpha": _ALPHA})
        said = RidgeClassifier.decision_function
        return best_on_path(plain, "alpha", self.path, said, loss, X, y, folds)[0]


_FLOATS = [np.float64, np.float32]


def _hold_out(
    head: Any, y: NDArray[Any], groups: Any
) -> tuple[NDArray[np.intp], Floats | None, list[tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """Rows' classes from 0 (n,), how much each counts (n,), and inner folds to choose on.

    Without folds, and if all rows count alike, there are no weights.
    """
    classes, codes = np.unique(y, return_inverse=True)
    folds = held_out_rows(y, groups, head.random_state) if len(classes) > 1 else []
    by_class = class_weights(head.class_weight, classes, y) if folds else None  # (classes,)
    return codes, None if by_class is None else by_class[codes], folds


def _mean(losses: Floats, weights: Floats | None, rows: NDArray[np.intp]) -> float:
    return float(np.average(losses, weights=None if weights is None else weights[rows]))


def _take(head: Any, fitted: Any) -> Any:
    """What sklearn's own estimator has learned, put into ours."""
    learned = vars(fitted).keys() - fitted.get_params().keys()
    vars(head).update({name: vars(fitted)[name] for name in learned})
    return head


class LDAHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear discriminant analysis with a shrunk covariance; expects standardised columns.

    Gaussian classes with one covariance: (1 - s) of what the rows have within their classes, and
    s times its mean variance in every direction (Friedman 1989; Ledoit & Wolf 2004). Columns that
    say the same would make it far too sure, so its logits are divided by a temperature. Both are
    learned on held-out rows, by the log loss.

    Parameters
    ----------
    shrinkage : float or None, default None
        s, above 0 and below 1; None chooses one.
    calibrate : bool, default True
        Divide the logits by a temperature; False leaves them as the Gaussians give them.
    random_state : int, RandomState or None, default 0
        Draws the rows that are held out.

    Attributes
    ----------
    classes_ : array of labels
    coef_, intercept_ : float64 arrays of shape (classes, d) and (classes,)
        Of the logits, with the temperature.
    shrinkage_, temperature_ : float
    held_out_ : (rows, probabilities)
        Of the rows that were held out, if any were; not kept with a saved model.
    """

    search_space: ClassVar[dict[str, Any]] = {"shrinkage": ("float", 0.05, 0.95)}
    path: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)

    def __init__(
        self, shrinkage: float | None = None, calibrate: bool = True, random_state: Any = 0
    ) -> None:
        self.shrinkage = shrinkage
        self.calibrate = calibrate
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> LDAHead:
        """Fit on X (n, d) with labels y (n,) of any kind.

        Rows that share a value of `groups` (n,) are held out together.

        Raises
        ------
        RecipeError
            For a `shrinkage` out of range.
        DataError
            If y has one class.
        """
        if self.shrinkage is not None and not 0 < self.shrinkage < 1:
            raise RecipeError(
                f"shrinkage is {self.shrinkage!r}", "Give a number above 0 and below 1, or null."
            )
        X, y = validate_data(self, X, y, dtype=_FLOATS)  # (n, d), (n,)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"LDAHead needs two classes, y has 1 class: {self.classes_[0]}",
                "Add images of another class.",
            )
        self.shrinkage_, self.temperature_ = self.shrinkage or _SHRINKAGE, 1.0
        asked = self.path if self.shrinkage is None else (float(self.shrinkage),)
        if self.calibrate or self.shrinkage is None:
            self._choose(asked, X, codes, held_out_rows(codes, groups, self.random_state))
        ((weight, bias),) = discriminants(X, codes, (self.shrinkage_,))
        self.coef_, self.intercept_ = weight / self.temperature_, bias / self.temperature_
        return self

    def _choose(
        self, asked: Sequence[float], X: NDArray[Any], codes: NDArray[np.intp], folds: Any
    ) -> None:
        """The shrinkage whose logits, each with its best temperature, have the lowest loss."""
        if not folds:
            return
        rows = np.concatenate([held for _, held in folds])
        fitted = [discriminants(X[train], codes[train], asked) for train, _ in folds]
        lowest = np.inf
        for place, shrinkage in enumerate(asked):
            values = np.concatenate(
                [X[held] @ made[place][0].T + made[place][1]
                 for (_, held), made in zip(folds, fitted, strict=True)]
            )  # fmt: skip
            found = temperature(values, codes[rows])
            logs = log_softmax(values / found, axis=1)  # (m, classes)
            loss = -float(logs[np.arange(len(rows)), codes[rows]].mean())
            if loss < lowest:
                lowest, self.shrinkage_ = loss, shrinkage
                self.temperature_ = found if self.calibrate else 1.0
                self.held_out_ = (rows, softmax(values / self.temperature_, axis=1))

    def decision_function(self, X: Any) -> Floats:
        """Logits (n, classes); of two classes the second's less the first's, (n,)."""
        values = self._logits(X)  # (n, classes)
        return values[:, 1] - values[:, 0] if values.shape[1] == 2 else values

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        proba: Floats = softmax(self._logits(X), axis=1)  # (n, classes)
        return proba

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row (n,)."""
        best = self._logits(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def as_module(self) -> Any:
        """The fitted head as a torch module that gives logits."""
        from featcache.fitting.networks import linear

        check_is_fitted(self)
        return linear(self.coef_, self.intercept_)

    def _logits(self, X: Any) -> Floats:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=_FLOATS)  # (n, d)
        values: Floats = X @ self.coef_.T + self.intercept_  # (n, classes)
        return values


def discriminants(
    X: NDArray[Any], codes: NDArray[np.intp], shrinkages: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """For each shrinkage, coefficients (classes, d) and intercepts (classes,) of the logits.

    Parameters
    ----------
    X : array of shape (n, d)
    codes : int array of shape (n,)
        Classes from 0, each with a row.
    shrinkages : sequence of float
        Above 0 and below 1.
    """
    counts = np.bincount(codes)
    centre = X.mean(axis=0, dtype=np.float64)  # (d,)
    means = np.stack([X[codes == code].mean(axis=0, dtype=np.float64) - centre
                      for code in range(len(counts))])  # (classes, d)  # fmt: skip
    rest = X - (means[codes] + centre).astype(X.dtype)  # (n, d)
    n, d = X.shape
    variance = float(np.square(rest, dtype=np.float64).sum()) / (n * d) or 1.0
    tall = n >= d
    gram = (rest.T @ rest if tall else rest @ rest.T).astype(np.float64)  # (d, d) or (n, n)
    across = means.T if tall else rest @ means.T  # (d, classes) or (n, classes)
    made = []
    for shrinkage in shrinkages:
        ridge = n * shrinkage * variance / (1 - shrinkage)
        shifted = gram.copy()
        shifted[np.diag_indices_from(shifted)] += ridge
        found = solve(shifted, across, assume_a="pos", overwrite_a=True)
        # Of few rows, the inverse (d, d) of their products (n, n), by Woodbury's identity.
        inverse = found if tall else (means.T - rest.T @ found) / ridge  # (d, classes)
        weight = inverse.T * n / (1 - shrinkage)  # (classes, d)
        bias = np.log(counts / n) - weight @ centre - (weight * means).sum(axis=1) / 2
        made.append((weight, bias))
    return made
