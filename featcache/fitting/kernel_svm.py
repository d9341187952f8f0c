"""The support vector head with a choice of kernel and with class weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from featcache.errors import DataError, unknown
from featcache.fitting.balance import class_weights
from featcache.fitting.svm import SVMHead

# The default C of each kernel.
_KERNELS = {"rbf": 10.0, "linear": 0.03}


class KernelSVMHead(SVMHead):
    """A support vector classifier with probabilities; expects standardised columns.

    See `svm.SVMHead` for how the probabilities are learned.

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
        those of a population with the classes in these proportions; see `balance.class_weights`.
    cv : int, default 3
        Parts for the calibration.
    gram_rows : int, default 12000
        Up to this many training rows the whole rbf kernel matrix is computed at once.
    random_state : int, RandomState or None, default 0
        Shuffles the rows into the calibration's parts, and orders LinearSVC's steps.

    Attributes
    ----------
    classes_ : array of labels
    calibrated_ : CalibratedClassifierCV
    weights_ : float64 array of shape (classes,), or None
        What `class_weight` came to.
    """

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
        super().__init__(gamma=gamma, cv=cv, gram_rows=gram_rows, random_state=random_state)
        self.C = C
        self.kernel = kernel
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> KernelSVMHead:
        """Fit on X (n, d) with labels y (n,) of any kind.

        Raises
        ------
        UnknownName
            For another `kernel` or `gamma`.
        RecipeError
            For a `class_weight` of another kind.
        DataError
            Where y has one class.
        """
        if self.kernel not in _KERNELS:
            raise unknown("kernel", str(self.kernel), _KERNELS)
        _, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # (n, d), (n,)
        check_classification_targets(y)
        labels, codes = np.unique(y, return_inverse=True)
        if len(labels) < 2:
            raise DataError(
                f"KernelSVMHead needs two classes, y has 1 class: {labels[0]}",
                "Add images of another class.",
            )
        self.weights_ = class_weights(self.class_weight, labels, y)
        # By their positions, because the calibration gives the machine positions for labels and
        # the weights have to find them.
        super().fit(X, codes)
        self.classes_ = labels
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        proba = super().predict_proba(X)  # (n, classes)
        if self.weights_ is None:
            return proba
        # The sigmoids were learned on classes as frequent as they are: Bayes' rule for others.
        weighed = proba * self.weights_  # (n, classes)
        scaled: NDArray[np.float64] = weighed / weighed.sum(axis=1, keepdims=True)  # (n, classes)
        return scaled

    def _machine(self, X: NDArray[Any]) -> Any:
        """The machine that suits the kernel and this many rows."""
        by_code = None if self.weights_ is None else dict(enumerate(self.weights_.tolist()))
        cost = _KERNELS[self.kernel] if self.C is None else self.C
        if self.kernel == "rbf":
            return super()._machine(X).set_params(C=cost, class_weight=by_code)
        named = {"scale": 1 / (X.shape[1] * (float(X.var()) or 1.0)), "auto": 1 / X.shape[1]}
        if isinstance(self.gamma, str) and self.gamma not in named:
            raise unknown("gamma", self.gamma, named)
        gamma = named[self.gamma] if isinstance(self.gamma, str) else self.gamma
        return LinearSVC(
            C=cost * gamma,
            class_weight=by_code,
            max_iter=10_000,
            random_state=check_random_state(self.random_state).randint(2**31 - 1),
        )
