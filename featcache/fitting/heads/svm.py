"""The support vector head: one machine a class against the rest, and calibrated probabilities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC as PlainSVC
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import DataError, unknown
from featcache.fitting.calibration import held_out_rows
from featcache.fitting.class_weights import class_weights
from featcache.fitting.splits import Rows

log = logging.getLogger("featcache")

try:  # this one class; the rest of scikit-learn stays as it is
    from sklearnex.svm import SVC
except ImportError as error:
    log.debug("SVC of scikit-learn, for want of scikit-learn-intelex: %s", error)
    from sklearn.svm import SVC

Floats = NDArray[np.float64]
Folds = Sequence[tuple[Rows, Rows]]

_CHUNK = 1000

# The default C of each kernel.
_KERNELS = {"rbf": 10.0, "linear": 0.03}


class GramSVC(BaseEstimator):  # type: ignore[misc]
    """One binary SVC a class against the rest, all on one rbf kernel matrix; of two classes, one.

    Parameters
    ----------
    C : float
    gamma : float
    class_weight : mapping of int to float, or None

    Attributes
    ----------
    support_vectors_ : array of shape (m, d)
        The rows that any of the machines needs.
    dual_coef_ : float64 array of shape (m, outputs)
    intercept_ : float64 array of shape (outputs,)
    """

    def __init__(
        self, C: float, gamma: float, class_weight: Mapping[int, float] | None = None
    ) -> None:
        self.C = C
        self.gamma = gamma
        self.class_weight = class_weight

    def fit(self, X: NDArray[Any], codes: NDArray[np.intp], folds: Folds = ()) -> Floats:
        """Fit on X (n, d) with classes (n,) from 0.

        Returns
        -------
        float64 array of shape (n, outputs)
            Decision values of each row by machines that were fitted without its fold.
        """
        gram = _gram(X, self.gamma)  # (n, n)
        held = np.empty((len(X), self._outputs(codes)))
        for train, test in folds:
            dual, intercept = self._machines(gram[np.ix_(train, train)], codes[train])
            held[test] = gram[np.ix_(test, train)] @ dual + intercept
        dual, self.intercept_ = self._machines(gram, codes)
        needed = dual.any(axis=1)  # (n,)
        self.support_vectors_, self.dual_coef_ = X[needed], dual[needed]
        return held if len(folds) else gram @ dual + self.intercept_

    def decision_function(self, X: NDArray[Any]) -> Floats:
        """Decision values (n, outputs)."""
        kernel = rbf_kernel(X, self.support_vectors_, gamma=self.gamma)  # (n, m)
        values: Floats = kernel @ self.dual_coef_ + self.intercept_  # (n, outputs)
        return values

    @staticmethod
    def _outputs(codes: NDArray[np.intp]) -> int:
        classes = int(codes.max()) + 1
        return classes if classes > 2 else 1

    def _machines(self, gram: Floats, codes: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Coefficients of the rows (n, outputs), and intercepts (outputs,)."""
        outputs = self._outputs(codes)
        weight = self.class_weight or {}
        weights = np.array([weight.get(code, 1.0) for code in codes.tolist()])  # (n,)
        dual, intercept = np.zeros((len(codes), outputs)), np.zeros(outputs)
        for output in range(outputs):
            mine = codes == (output if outputs > 1 else 1)  # (n,)
            with config_context(assume_finite=True):  # not n² numbers for each machine
                machine = PlainSVC(C=self.C, kernel="precomputed").fit(gram, mine, weights)
            dual[machine.support_, output] = machine.dual_coef_[0]
            intercept[output] = machine.intercept_[0]
        return dual, intercept


def _gram(X: NDArray[Any], gamma: float) -> Floats:
    """The rbf kernel of the rows (n, n), by one product in X's precision.

    Half the time of scikit-learn's, which multiplies in float64; centred rows lose nothing.
    """
    X = X - X.mean(axis=0)  # (n, d)
    gram = X @ X.T  # (n, n)
    square = np.diagonal(gram).copy()  # (n,)
    gram *= 2
    gram -= square
    gram -= square[:, None]
    gram *= gram.dtype.type(gamma)
    np.minimum(gram, 0, out=gram)
    return np.asarray(np.exp(gram, out=gram), np.float64)


class SVMHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A support vector classifier with probabilities; expects standardised columns.

    Of more than two classes, each has a machine against the rest (Rifkin & Klautau 2004). A
    multinomial logistic regression, of two classes Platt's sigmoid (1999), turns the decision
    values into probabilities. It learns from the values of rows that were held out in turn (`cv`
    parts; of many rows as many of them as hold 2,000). `predict` is the most probable class, hence
    always consistent with `predict_proba`; near a boundary it can differ from what the bare
    machines say.

    A class with fewer rows than `cv` lowers the number of parts to its rows. With a class of one
    row nothing can be held out: the map is then learned on the training rows themselves, and the
    probabilities are too sure.

    Parameters
    ----------
    C : float or None, default None
        Cost of a margin violation, on a kernel that `gamma` scales, so that one value suits any
        number of columns. None is 10 for "rbf" and 0.03 for "linear", which is slower and worse
        at high costs.
    kernel : {"rbf", "linear"}, default "rbf"
        "rbf" is exp(-gamma |x - z|²), by SVC. "linear" is gamma x·z, by LinearSVC, whose own C is
        hence C * gamma, with time in proportion to the rows.
    gamma : float or {"scale", "auto"}, default "scale"
        "scale" is 1 / (columns * variance of X), "auto" is 1 / columns.
    class_weight : None, "balanced" or dict, default None
        How much a row of each class counts, in the margins and in the probabilities, which are
        those of a population with the classes in these proportions; see `class_weights`.
    cv : int, default 3
        Parts for the calibration.
    gram_rows : int, default 12000
        Up to this many training rows the whole rbf kernel matrix is computed once, for all
        machines and parts, in 15 bytes x rows² of memory at the peak (2 GB at the default). Above,
        one SVC (scikit-learn-intelex's if that is installed) computes the kernel row by row; of
        more than two classes it fits each pair and counts their votes, which is slower and worse
        (`reports/benchmarks/heads.md`). With memory to spare, raise it.
    random_state : int, RandomState or None, default 0
        Shuffles the rows into the calibration's parts, and orders LinearSVC's steps.

    Attributes
    ----------
    classes_ : array of labels
    machine_ : GramSVC, LinearSVC or SVC
        Fitted on the labels' positions in `classes_`.
    map_ : LogisticRegression
        From decision values to positions.
    held_out_ : (rows, probabilities)
        Of the rows that were held out, (m,) and (m, classes); not kept with a saved model.
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
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"SVMHead needs two classes, y has 1 class: {self.classes_[0]}",
                "Add images of another class.",
            )
        self.weights_ = class_weights(self.class_weight, self.classes_, y)
        drawn = check_random_state(self.random_state)
        self.machine_ = self._machine(X, drawn)
        seed = int(drawn.randint(2**31 - 1))
        folds = held_out_rows(codes, groups, seed, self.cv)
        folds = folds or held_out_rows(codes, None, seed, self.cv)
        values = _fit_and_hold_out(self.machine_, X, codes, folds)  # (n, outputs)
        # If nothing can be held out, the machines' own rows.
        rows = np.concatenate([held for _, held in folds]) if folds else np.arange(len(X))
        # A sigmoid has two numbers to learn and, as Platt's, next to no penalty; the map has k².
        strength = 1.0 if len(self.classes_) > 2 else 100.0
        self.map_ = LogisticRegression(C=strength, max_iter=1000).fit(values[rows], codes[rows])
        self.held_out_ = (rows, self._weighted(self.map_.predict_proba(values[rows])))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])  # (n, d)
        if hasattr(self, "calibrated_"):  # a model that an earlier version has kept
            return self._weighted(self.calibrated_.predict_proba(X))
        parts = (X[start : start + _CHUNK] for start in range(0, len(X), _CHUNK))
        values = [_columns(self.machine_.decision_function(part)) for part in parts]
        return self._weighted(self.map_.predict_proba(np.concatenate(values)))

    def _weighted(self, proba: Floats) -> Floats:
        """By Bayes' rule for classes in other proportions than those that the map learned on."""
        proba = proba if self.weights_ is None else proba * self.weights_  # (n, classes)
        scaled: Floats = proba / proba.sum(axis=1, keepdims=True)  # (n, classes)
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
        if len(X) > self.gram_rows:
            return SVC(C=cost, gamma=gamma, class_weight=by_code, cache_size=1000)
        return GramSVC(cost, gamma, by_code)

    def _gamma(self, X: NDArray[Any]) -> float:
        named = {"scale": 1 / (X.shape[1] * (float(X.var()) or 1.0)), "auto": 1 / X.shape[1]}
        if not isinstance(self.gamma, str):
            return float(self.gamma)
        if self.gamma not in named:
            raise unknown("gamma", self.gamma, named)
        return float(named[self.gamma])


def _columns(values: Floats) -> Floats:
    """Decision values (n, outputs); of two classes they may come as (n,)."""
    return values[:, None] if values.ndim == 1 else values


def _fit_and_hold_out(machine: Any, X: NDArray[Any], codes: Rows, folds: Folds) -> Floats:
    """Fit the machine on all rows; values (n, outputs) by clones that were fitted without them.

    Without folds, the machine's own.
    """
    if isinstance(machine, GramSVC):
        return machine.fit(X, codes, folds)
    machine.fit(X, codes)
    values = _columns(machine.decision_function(X))  # (n, outputs)
    for train, held in folds:
        part = clone(machine).fit(X[train], codes[train])
        values[held] = _columns(part.decision_function(X[held]))
    return values
