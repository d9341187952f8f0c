"""Tuning: settings tried in an inner loop, on the training rows alone.

What is searched is the `search_space` of the head's and the fusion's class: for each parameter a
list of choices, or ("log" | "float" | "int", low, high), both ends included. A setting that is
given is not searched.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import ParameterSampler, PredefinedSplit
from sklearn.utils import check_random_state

from featcache.errors import DataError, FeatcacheError, RecipeError, counted, unknown
from featcache.fitting.out_of_core import fit_with_routing
from featcache.fitting.splits import inner_folds
from featcache.fitting.stratified import stratified_groups

TUNERS = ("random", "optuna")


class TunedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier with the settings that did best over inner folds of the training rows.

    The first try is the classifier as it is; the rest are drawn from the space. Each is scored by
    its mean accuracy over the inner folds, the first among equals wins and is fitted on all rows.

    Parameters
    ----------
    estimator : sklearn classifier
    space : mapping
        Dotless sklearn parameter names to what is searched: choices or a range, see above.
    tries : int, default 20
        Settings tried.
    tuner : {"random", "optuna"}, default "random"
        Drawn at random (Bergstra & Bengio 2012, sklearn's ParameterSampler), or by optuna's TPE,
        which learns from the tries before.
    cv : int, default 3
        Inner folds, stratified; rows of one group in one fold.
    random_state : int, RandomState or None, default 0
        Of the folds and the draws.

    Attributes
    ----------
    best_ : fitted classifier
    tuned_ : dict
        `tuner`, `tries`, `cv`, `chosen` (parameters set), `score` (mean inner accuracy),
        `default_score` (of the classifier as it is), `seconds` (all tries).
    classes_ : array of labels
    """

    def __init__(
        self,
        estimator: Any,
        space: Mapping[str, Any],
        tries: int = 20,
        tuner: str = "random",
        cv: int = 3,
        random_state: Any = 0,
    ) -> None:
        self.estimator = estimator
        self.space = space
        self.tries = tries
        self.tuner = tuner
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> TunedClassifier:
        """Search on X (n, d) with labels y (n,); rows that share a value of `groups` (n,) stay
        together.

        Raises
        ------
        RecipeError
            For a number of tries or folds that is none, or another tuner.
        DataError
            If a class has rows of one group only: nothing can be held out.
        FeatcacheError
            If optuna is asked for and not installed.
        """
        check_tuning(self.tries, self.tuner)
        started = time.perf_counter()
        X, y = np.asarray(X), np.asarray(y)  # (n, d), (n,)
        groups = None if groups is None else np.asarray(groups)  # (n,)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        folds = _inner_folds(y, groups, self.cv, seed)

        def score(params: Mapping[str, Any]) -> float:
            right = []
            for train, held in folds:
                made = clone(self.estimator).set_params(**params)
                fit_with_routing(
                    made, X[train], y[train], None if groups is None else groups[train]
                )
                right.append(float((made.predict(X[held]) == y[held]).mean()))
            return float(np.mean(right))

        # A space without anything to search leaves the classifier as it is.
        drawn = _by_optuna if self.tuner == "optuna" else _by_chance
        tried = drawn(score, dict(self.space), self.tries if self.space else 1, seed)
        best, chosen = max(tried, key=lambda pair: pair[0])  # the first among equals
        self.best_ = clone(self.estimator).set_params(**chosen)
        self.tuned_ = {
            "tuner": self.tuner,
            "tries": len(tried),
            "cv": len(folds),
            "chosen": dict(chosen),
            "score": best,
            "default_score": tried[0][0],
            "seconds": time.perf_counter() - started,
        }
        fit_with_routing(self.best_, X, y, groups)
        self.classes_ = self.best_.classes_
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The label of each row (n,)."""
        predicted: NDArray[Any] = self.best_.predict(X)  # (n,)
        return predicted


def check_tuning(tries: Any, tuner: str) -> None:
    """Refuse a budget or a tuner that can't be, before the first fit."""
    if tuner not in TUNERS:
        raise unknown("tuner", str(tuner), TUNERS)
    if isinstance(tries, bool) or not isinstance(tries, (int, np.integer)) or tries < 1:
        raise RecipeError(f"{tries!r} settings to try", "Give a whole number above 0: --tune 20.")
    if tuner == "optuna" and importlib.util.find_spec("optuna") is None:
        raise FeatcacheError(
            "the tuner 'optuna' needs the package optuna, which is not installed",
            "pip install 'featcache[optuna]', or leave out --tuner.",
        )


Tried = list[tuple[float, dict[str, Any]]]


def _by_chance(score: Any, space: dict[str, Any], tries: int, seed: int) -> Tried:
    drawn: list[dict[str, Any]] = [{}]
    if tries > 1:
        # More draws than there are settings would be repeats: sklearn draws a finite space
        # without replacement and warns where it is smaller than asked.
        finite = math.prod(len(v) if isinstance(v, list) else 10**9 for v in space.values())
        plain = {name: _distribution(what) for name, what in sorted(space.items())}
        drawn += [
            _plain(one)
            for one in ParameterSampler(plain, min(tries - 1, finite), random_state=seed)
        ]
    return [(score(params), params) for params in drawn]


def _by_optuna(score: Any, space: dict[str, Any], tries: int, seed: int) -> Tried:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tried: Tried = [(score({}), {})]
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

    def objective(trial: Any) -> float:
        params = {name: _suggested(trial, name, what) for name, what in sorted(space.items())}
        tried.append((score(params), params))
        return tried[-1][0]

    if tries > 1:
        study.optimize(objective, n_trials=tries - 1)
    return tried


def _distribution(what: Any) -> Any:
    """What ParameterSampler draws from."""
    if isinstance(what, list):
        return what
    kind, low, high = what
    if kind == "int":
        return stats.randint(low, high + 1)
    return stats.loguniform(low, high) if kind == "log" else stats.uniform(low, high - low)


def _suggested(trial: Any, name: str, what: Any) -> Any:
    if isinstance(what, list):
        # optuna's choices are plain values: choose the place.
        return what[trial.suggest_categorical(name, list(range(len(what))))]
    kind, low, high = what
    if kind == "int":
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=kind == "log")


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's, which JSON knows."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in params.items()}


def _inner_folds(
    y: NDArray[Any], groups: NDArray[Any] | None, cv: int, seed: int
) -> list[tuple[Any, Any]]:
    """Stratified folds of the training rows; groups stay whole."""
    unit = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = {label: len(np.unique(unit[y == label])) for label in np.unique(y).tolist()}
    rare = min(counts, key=lambda label: counts[label])
    parts = min(cv, counts[rare])
    if parts < 2:
        raise DataError(
            f"class {rare!r} has {counted(counts[rare], 'image or group', 'images or groups')} "
            "to train on: none can be held out "
            "for tuning",
            f"Add images of {rare!r}, ask for fewer folds, or leave out --tune.",
        )
    if len(np.unique(unit)) == len(y):
        return inner_folds(y, None, parts, seed)
    pairs = PredefinedSplit(stratified_groups(y, unit, parts, seed)).split()
    usable = [(train, held) for train, held in pairs if len(np.unique(y[train])) > 1]
    if not usable:
        raise DataError("no inner fold for tuning has two classes", "Leave out --tune.")
    return usable
