"""The support vector head: an RBF SVC with calibrated probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import unknown

try:
    from sklearnex.svm import SVC  # several times as fast on Intel processors
except ImportError:
    from sklearn.svm import SVC

_CHUNK = 1000


class SVMHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An RBF support vector classifier with probabilities; expects standardised columns.

    The machine itself is fitted on all rows. Its decision values are turned into probabilities
    by one sigmoid a class, learned on the values of rows that were held out in turn (`cv` parts),
    so a fit costs about `cv` + 1 SVC fits. `predict` is the most probable class, hence always
    consistent with `predict_proba`; near a boundary it can differ from what the bare SVC says.

    A class with fewer rows than `cv` lowers the number of parts to its rows. With a class of one
    row nothing can be held out: the sigmoids are then learned on the training rows themselves,
    and the probabilities are too sure.

    Parameters
    ----------
    C : float, default 10.0
        Cost of a margin violation.
    gamma : float or {"scale", "auto"}, default "scale"
        Width of the kernel, as in sklearn's SVC.
    cv : int, default 3
        Parts for the calibration.
    gram_rows : int, default 12000
        Up to this many training rows the whole kernel matrix is computed at once, by one matrix
        product: several times as fast, for 8 bytes x rows² of memory (1.2 GB at the default).
        Above, the SVC computes the kernel row by row. Not used with scikit-learn-intelex, which
        is fast by itself.
    random_state : int, RandomState or None, default 0
        Shuffles the rows into the calibration's parts.

    Attributes
    ----------
    classes_ : array of labels
    calibrated_ : CalibratedClassifierCV
    """

    def __init__(
        self,
        C: float | None = 10.0,
        gamma: float | str = "scale",
        cv: int = 3,
        gram_rows: int = 12_000,
        random_state: Any = 0,
    ) -> None:
        self.C = C
        self.gamma = gamma
        self.cv = cv
        self.gram_rows = gram_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> SVMHead:
        """Fit on X (n, d) with labels y (n,) of any kind."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # (n, d), (n,)
        check_classification_targets(y)
        self.classes_, counts = np.unique(y, return_counts=True)
        if len(self.classes_) < 2:
            raise ValueError(f"SVMHead needs two classes, y has 1 class: {self.classes_[0]}")
        machine = self._machine(X)
        parts = min(self.cv, int(counts.min()))
        if parts < 2:
            # A frozen machine is not fitted again, so these parts only walk over the rows.
            frozen, walk = FrozenEstimator(machine.fit(X, y)), list(KFold(2).split(X))
            self.calibrated_ = CalibratedClassifierCV(frozen, cv=walk, ensemble=False).fit(X, y)
            return self
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        folds = StratifiedKFold(parts, shuffle=True, random_state=seed)
        self.calibrated_ = CalibratedClassifierCV(machine, cv=folds, ensemble=False).fit(X, y)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])  # (n, d)
        parts = (X[start : start + _CHUNK] for start in range(0, len(X), _CHUNK))
        proba = np.concatenate([self.calibrated_.predict_proba(part) for part in parts])
        scaled: NDArray[np.float64] = proba / proba.sum(axis=1, keepdims=True)  # (n, classes)
        return scaled

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row (n,)."""
        best = self.predict_proba(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def _machine(self, X: NDArray[Any]) -> Any:
        """The SVC that suits this many rows; the kernel is the same."""
        if SVC.__module__.startswith("sklearnex") or len(X) > self.gram_rows:
            return SVC(C=self.C, gamma=self.gamma, cache_size=1000)
        named = {"scale": 1 / (X.shape[1] * (float(X.var()) or 1.0)), "auto": 1 / X.shape[1]}
        if isinstance(self.gamma, str) and self.gamma not in named:
            raise unknown("gamma", self.gamma, named)
        gamma = named[self.gamma] if isinstance(self.gamma, str) else self.gamma
        return SVC(C=self.C, kernel=partial(rbf_kernel, gamma=gamma))
