"""Feature selection: which columns of the fused vectors the head gets to see.

A selection is written NAME or NAME:AMOUNT, for instance "anova:256", and stands between fusion
and head. It is learned on the training rows, like all else.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectorMixin, f_classif, mutual_info_classif
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import DataError, FeatcacheError, RecipeError, counted, unknown
from featcache.fitting.names import SELECTIONS
from featcache.fitting.splits import inner_folds

_SCORES = ("variance", "anova", "mutual")


class BestColumns(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """The columns with the highest score; among equals, the first.

    Parameters
    ----------
    criterion : {"anova", "mutual", "variance"}, default "anova"
        "anova": F of the class means (sklearn's f_classif), a constant column last; "mutual":
        mutual information with the label by nearest neighbours (Ross 2014, sklearn's
        mutual_info_classif), slow; "variance": no look at the labels, for columns that were not
        standardised before.
    amount : int or float, default 256
        How many columns (all, where there are fewer), or a share of them between 0 and 1.
    standardise : bool, default False
        Bring the kept columns to mean 0 and standard deviation 1.
    random_state : int, RandomState or None, default 0
        Of the mutual information's noise.

    Attributes
    ----------
    scores_ : float64 array of shape (d,)
    support_ : bool array of shape (d,)
    scaler_ : StandardScaler or None
    """

    def __init__(
        self,
        criterion: str = "anova",
        amount: float = 256,
        standardise: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.criterion = criterion
        self.amount = amount
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> BestColumns:
        """Score the columns of X (n, d) against labels y (n,).

        Raises
        ------
        UnknownName
            For another `criterion`.
        RecipeError
            For an `amount` that is neither a number of columns nor a share.
        """
        if self.criterion not in _SCORES:
            raise unknown("criterion", str(self.criterion), _SCORES)
        _check_amount(self.amount)
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        self.scores_ = self._scores(X, y)  # (d,)
        kept = np.argsort(-self.scores_, kind="stable")[: _count(self.amount, X.shape[1])]
        self.support_ = np.zeros(X.shape[1], dtype=bool)
        self.support_[kept] = True
        self.scaler_ = StandardScaler().fit(X[:, self.support_]) if self.standardise else None
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """The kept columns (n, kept), in X's order and precision."""
        kept: NDArray[Any] = super().transform(X)  # (n, kept)
        return kept if self.scaler_ is None else self.scaler_.transform(kept)

    def _scores(self, X: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        if self.criterion == "variance":
            return np.asarray(X.var(axis=0, dtype=np.float64))  # (d,)
        if self.criterion == "mutual":
            seed = check_random_state(self.random_state).randint(2**31 - 1)
            return np.asarray(mutual_info_classif(X, y, random_state=seed))  # (d,)
        varied = X.max(axis=0) > X.min(axis=0)  # (d,)
        scores = np.full(X.shape[1], -1.0)
        if varied.any():
            # Columns that tell the classes apart without a rest divide by 0: infinitely good.
            with np.errstate(divide="ignore", invalid="ignore"):
                scores[varied] = np.nan_to_num(f_classif(X[:, varied], y)[0], nan=-1.0)
        return scores

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask: NDArray[np.bool_] = self.support_
        return mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class PrincipalComponents(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """sklearn's PCA of the whole matrix, exact, of at most n - 1 components.

    Parameters
    ----------
    amount : int or float, default 256
        How many components, or the share of the variance to keep, between 0 and 1.

    Attributes
    ----------
    pca_ : PCA
    """

    def __init__(self, amount: float = 256) -> None:
        self.amount = amount

    def fit(self, X: Any, y: Any = None) -> PrincipalComponents:
        """Learn the components of X (n, d); y is ignored.

        Raises
        ------
        RecipeError
            For an `amount` that is neither a number of components nor a share.
        """
        _check_amount(self.amount)
        X = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2)
        n, d = X.shape
        share = isinstance(self.amount, (float, np.floating))
        components = self.amount if share else min(int(self.amount), d, n - 1)
        # Both solvers are exact; the first takes time in d³, the second in n²d.
        solver = "covariance_eigh" if n >= d else "full"
        with np.errstate(invalid="ignore"):  # constant columns have no variance to share
            self.pca_ = PCA(components, svd_solver=solver).fit(X)
        self._n_features_out = int(self.pca_.n_components_)
        return self

    def as_module(self) -> Any:
        """The fitted components as a torch module."""
        from featcache.fitting.networks import components

        check_is_fitted(self)
        return components(self.pca_)

    def transform(self, X: Any) -> NDArray[Any]:
        """The components (n, kept), in X's precision."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])  # (n, d)
        components: NDArray[Any] = self.pca_.transform(X)  # (n, kept)
        return components

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def make_selection(spec: str, seed: int = 0) -> Any:
    """The transformer for "anova:256" and the like.

    Parameters
    ----------
    spec : str
        A name in `SELECTIONS`; for all but "nsga", perhaps ":" and a number of columns (256) or a
        share (0.5: of the columns, or of the variance for "pca").
    seed : int, default 0

    Raises
    ------
    UnknownName
        For another name.
    RecipeError
        For an amount that is none.
    """
    name, colon, text = spec.partition(":")
    if name not in SELECTIONS:
        raise unknown("selection", name, SELECTIONS)
    if name == "nsga":
        need_pymoo()
    made = SELECTIONS[name](seed)
    if not colon:
        return made
    if "amount" not in made.get_params():
        raise RecipeError(f"selection {spec!r}: {name} takes no amount", f"Write --select {name}.")
    try:
        amount = float(text) if "." in text else int(text)
    except ValueError:
        raise RecipeError(f"selection {spec!r}: {text!r} is no number", _AMOUNT) from None
    _check_amount(amount)
    return made.set_params(amount=amount)


_AMOUNT = "Give a number of columns (anova:256), or a share (anova:0.5)."


def _check_amount(amount: Any) -> None:
    whole = isinstance(amount, (int, np.integer)) and not isinstance(amount, bool) and amount >= 1
    if not whole and not (isinstance(amount, (float, np.floating)) and 0 < amount < 1):
        raise RecipeError(f"amount is {amount!r}", _AMOUNT)


def _count(amount: float, width: int) -> int:
    share = isinstance(amount, (float, np.floating))
    return max(1, round(amount * width)) if share else min(int(amount), width)


Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_PICKS = ("knee", "error")


class NSGASelection(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Columns found by NSGA-II, minimising (cross-validated error, number of columns).

    The error is that of a ridge classifier over `cv` stratified parts of at most `rows` training
    rows: fast, and blind to the rows that are tested. NSGA-II: Deb et al. 2002,
    doi:10.1109/4235.996017, by pymoo; to select deep features with it: Amin et al. 2021.
    Columns should be standardised.

    Parameters
    ----------
    population : int, default 24
        Subsets in one generation; the first are drawn with a tenth to nine tenths of the columns.
    generations : int, default 15
    pick : {"knee", "error"}, default "knee"
        Which subset of the last front to take: the one nearest to the ideal (lowest error and
        fewest columns, both scaled to 0 … 1 over the front), or the one with the lowest error.
    cv : int, default 3
        Parts; fewer where a class has fewer rows.
    rows : int, default 2000
        Most rows to search on, a stratified sample.
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    support_ : bool array of shape (d,)
    front_ : float64 array of shape (solutions, 2)
        Error and number of columns of each subset that no other beats in both.
    """

    def __init__(
        self,
        population: int = 24,
        generations: int = 15,
        pick: str = "knee",
        cv: int = 3,
        rows: int = 2000,
        random_state: Any = 0,
    ) -> None:
        self.population = population
        self.generations = generations
        self.pick = pick
        self.cv = cv
        self.rows = rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> NSGASelection:
        """Search the columns of X (n, d) for labels y (n,).

        Rows that share a value of `groups` (n,) go into one part, if each class has two of them.

        Raises
        ------
        FeatcacheError
            If pymoo is not installed.
        UnknownName
            For another `pick`.
        RecipeError
            For a parameter that is no whole number above 0, or above 1 for `population` and `cv`.
        DataError
            If a class has one row: nothing can be held out.
        """
        need_pymoo()
        if self.pick not in _PICKS:
            raise unknown("pick", str(self.pick), _PICKS)
        least = {"population": 2, "generations": 1, "cv": 2, "rows": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
                raise RecipeError(f"{name} is {value!r}", f"Give a whole number from {low}.")
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = self._sample(y, seed)
        X, y = X[rows], y[rows]
        classes, counts = np.unique(y, return_counts=True)
        folds = []
        if len(classes) > 1:
            mine = None if groups is None else np.asarray(groups)[rows]
            folds = inner_folds(y, mine, self.cv, seed) or inner_folds(y, None, self.cv, seed)
        if not folds:
            raise DataError(
                f"the selection 'nsga' can't hold rows out: class {classes[counts.argmin()]!r} "
                f"has {counts.min()} of {counted(len(y), 'training row')}",
                "It needs two classes with two rows or more; choose another selection.",
            )

        def objectives(chosen: Mask) -> tuple[float, float]:
            if not chosen.any():
                return 1.0, float(X.shape[1])  # the worst of both
            return _error(X[:, chosen], y, folds), float(chosen.sum())

        masks, self.front_ = _search(
            objectives, X.shape[1], self.population, self.generations, seed
        )
        place = self.front_[:, 0].argmin() if self.pick == "error" else _knee(self.front_)
        self.support_ = masks[place]
        return self

    def _sample(self, y: NDArray[Any], seed: int) -> NDArray[np.intp]:
        classes, counts = np.unique(y, return_counts=True)
        left = len(y) - self.rows  # stratified, both sides need a row of each class
        if left < len(classes) or counts.min() < 2 or self.rows < len(classes):
            return np.arange(len(y))
        kept, _ = train_test_split(
            np.arange(len(y)), train_size=self.rows, stratify=y, random_state=seed
        )
        return np.asarray(kept, np.intp)

    def _get_support_mask(self) -> Mask:
        check_is_fitted(self)
        mask: Mask = self.support_
        return mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def need_pymoo() -> None:
    """An error with its remedy where pymoo is not installed."""
    if importlib.util.find_spec("pymoo") is None:
        raise FeatcacheError(
            "the selection 'nsga' needs the package pymoo, which is not installed",
            "pip install 'featcache[nsga]'",
        )


def _search(
    objectives: Any, width: int, population: int, generations: int, seed: int
) -> tuple[NDArray[np.bool_], Floats]:
    """The last front: subsets (s, d), and their errors and sizes (s, 2), by falling error."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.optimize import minimize

    class Columns(ElementwiseProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(n_var=width, n_obj=2, xl=0, xu=1, vtype=bool)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = objectives(np.asarray(x, dtype=bool))

    rng = np.random.default_rng(seed)
    density = np.linspace(0.1, 0.9, population)[:, None]  # (population, 1)
    first = rng.random((population, width)) < density  # (population, d)
    algorithm = NSGA2(
        pop_size=population,
        sampling=first,
        crossover=TwoPointCrossover(),
        mutation=BitflipMutation(),
        eliminate_duplicates=True,
    )
    found = minimize(Columns(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    masks = np.atleast_2d(np.asarray(found.X, dtype=bool))  # (s, d)
    scores = np.atleast_2d(np.asarray(found.F, dtype=np.float64))  # (s, 2)
    order = np.lexsort((scores[:, 0], scores[:, 1]))
    return masks[order], scores[order]


def _knee(front: Floats) -> int:
    """The point of the front nearest to its ideal, both objectives scaled to 0 … 1."""
    span = np.ptp(front, axis=0)  # (2,)
    scaled = (front - front.min(axis=0)) / np.where(span > 0, span, 1)  # (s, 2)
    return int(np.linalg.norm(scaled, axis=1).argmin())


def _error(X: NDArray[Any], y: NDArray[Any], folds: list[tuple[Any, Any]]) -> float:
    wrong = 0
    for train, held in folds:
        # As strong an L2 on few columns as on many.
        fitted = RidgeClassifier(alpha=0.1 * len(train)).fit(X[train], y[train])
        wrong += int((fitted.predict(X[held]) != y[held]).sum())
    return wrong / len(y)
