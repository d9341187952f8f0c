"""The support vector head: an SVC with a choice of kernel and calibrated probabilities."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import DataError, unknown
from featcache.fitting.class_weights import class_weights
from featcache.fitting.splits import inner_folds

log = logging.getLogger("featcache")

try:  # this one class; the rest of scikit-learn stays as it is
    from sklearnex.svm import SVC
except ImportError as error:
    log.debug("SVC of scikit-learn, for want of scikit-learn-intelex: %s", error)
    from sklearn.svm import SVC

_CHUNK = 1000

# The default C of each kernel.
_KERNELS = {"rbf": 10.0, "linear": 0.03}


class SVMHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A support vector classifier with probabilities; expects standardised columns.

    The machine itself is fitted on all rows. Its decision values are turned into probabilities
    by one sigmoid a class (Platt 1999, sklearn's CalibratedClassifierCV), learned on the values of
    rows that were held out in turn (`cv` parts), so a fit costs about `cv` + 1 fits of the machine.
    `predict` is the most probable class, hence always consistent with `predict_proba`; near a
    boundary it can differ from what the bare machine says.

    A class with fewer rows than `cv` lowers the number of parts to its rows. With a class of one
    row nothing can be held out: the sigmoids are then learned on the training rows themselves,
    and the probabilities are too sure.

    The rbf machine is scikit-learn-intelex's SVC where that is installed, else scikit-learn's.

    Parameters
    ----------
    C : float or None, default None
        Cost of a margin violation, on a kernel that `gamma` scales, so that one value suits any
        number of columns. None is 10 for "rbf" and 0.03 for "linear", which is slower and worse
        at high costs.
    kernel : {"rbf", "linear"}, default "rbf"
        "rbf" is exp(-gamma |x - z|²), by SVC. "linear" is gamma x·z, by LinearSVC, whose own C is
        hence C * gamma; one machine a class, with time in proportion to the rows.
    gamma : float or {"scale", "auto"}, default "scale"
        "scale" is 1 / (columns * variance of X), "auto" is 1 / columns.
    class_weight : None, "balanced" or dict, default None
        How much a row of each class counts, in the margins and in the probabilities, which are
        those of a population with the classes in these proportions; see `class_weights`.
    cv : int, default 3
        Parts for the calibration.
    gram_rows : int, default 12000
        Up to this many training rows the whole rbf kernel matrix is computed at once, by one
        matrix product: several times as fast, for 8 bytes x rows² of memory (1.2 GB at the
        default). Above, the SVC computes the kernel row by row. Not used with
        scikit-learn-intelex, which is fast by itself.
    random_state : int, RandomState or None, default 0
        Shuffles the rows into the calibration's parts, and orders LinearSVC's steps.

    Attributes
    ----------
    classes_ : array of labels
    calibrated_ : CalibratedClassifierCV
        Fitted on the labels' positions in `classes_`.
    weights_ : float64 array of shape (classes,), or None
        What `class_weight` came to.
    """

    search_space: ClassVar[dict[str, Any]] = {"C": ("log", 0.3, 100.0), "gamma": ["scale", "auto"]}

    def __init__(
        self,
        C: float | None = None,
        kernel: str = "rbf",
        gamma: float | str = "scale",
        class_weight: str | Mapping[Any, float] | None = None,
        cv: int = 3,
        gram_rows: int = 12_000,
        random_state: Any = 0,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.class_weight = class_weight
        self.cv = cv
        self.gram_rows = gram_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> SVMHead:
        """Fit on X (n, d) with labels y (n,) of any kind.

        Rows that share a value of `groups` (n,) go into one part of the calibration.

        Raises
        ------
        UnknownName
            For another `kernel` or `gamma`.
        RecipeError
            For a `class_weight` of another kind.
        DataError
            If y has one class.
        """
        if self.kernel not in _KERNELS:
            raise unknown("kernel", str(self.kernel), _KERNELS)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # (n, d), (n,)
        check_classification_targets(y)
        self.classes_, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"SVMHead needs two classes, y has 1 class: {self.classes_[0]}",
                "Add images of another class.",
            )
        self.weights_ = class_weights(self.class_weight, self.classes_, y)
        drawn = check_random_state(self.random_state)
        machine = self._machine(X, drawn)
        parts = min(self.cv, int(counts.min()))
        if parts < 2:
            # A frozen machine is not fitted again, so these parts only walk over the rows.
            machine, folds = FrozenEstimator(machine.fit(X, codes)), list(KFold(2).split(X))
        else:
            seed = int(drawn.randint(2**31 - 1))
            # A splitter, if it will do: these folds are saved with the model.
            folds = StratifiedKFold(parts, shuffle=True, random_state=seed)
            if groups is not None:  # as texts: their order is part of what is drawn
                folds = inner_folds(codes.astype(str), groups, parts, seed) or folds
        # On positions, because the calibration gives the machine positions for labels and the
        # weights have to find them.
        self.calibrated_ = CalibratedClassifierCV(machine, cv=folds, ensemble=False)
        self.calibrated_.fit(X, codes)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])  # (n, d)
        parts = (X[start : start + _CHUNK] for start in range(0, len(X), _CHUNK))
        proba = np.concatenate([self.calibrated_.predict_proba(part) for part in parts])
        if self.weights_ is not None:
            # The sigmoids were learned on classes as frequent as they are: Bayes' rule for others.
            proba = proba * self.weights_  # (n, classes)
        scaled: NDArray[np.float64] = proba / proba.sum(axis=1, keepdims=True)  # (n, classes)
        return scaled

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row (n,)."""
        best = self.predict_proba(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def _machine(self, X: NDArray[Any], drawn: np.random.RandomState) -> Any:
        """The unfitted machine that suits the kernel and this many rows."""
        gamma = self._gamma(X)
        cost = _KERNELS[self.kernel] if self.C is None else self.C
        by_code = None if self.weights_ is None else dict(enumerate(self.weights_.tolist()))
        if self.kernel == "linear":
            seed = drawn.randint(2**31 - 1)
            return LinearSVC(
                C=cost * gamma, class_weight=by_code, max_iter=10_000, random_state=seed
            )
        if SVC.__module__.startswith("sklearnex") or len(X) > self.gram_rows:
            return SVC(C=cost, gamma=gamma, class_weight=by_code, cache_size=1000)
        return SVC(C=cost, kernel=partial(rbf_kernel, gamma=gamma), class_weight=by_code)

    def _gamma(self, X: NDArray[Any]) -> float:
        named = {"scale": 1 / (X.shape[1] * (float(X.var()) or 1.0)), "auto": 1 / X.shape[1]}
        if not isinstance(self.gamma, str):
            return float(self.gamma)
        if self.gamma not in named:
            raise unknown("gamma", self.gamma, named)
        return float(named[self.gamma])
