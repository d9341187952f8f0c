"""Late fusions: one clone of the head on each block, and then their verdicts together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import DataError, RecipeError
from featcache.fitting.blocks import resolve_blocks, slices
from featcache.fitting.calibration import temperature, tempered
from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.out_of_core import Stream, by_blocks, fit_with_routing, some_rows
from featcache.fitting.splits import inner_folds


def _default_head() -> Any:
    return HEADS["logreg"](0)


def _head_has_probabilities(fusion: Any) -> bool:
    return hasattr(_default_head() if fusion.head is None else fusion.head, "predict_proba")


class LateFusion(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What vote and stack share: the clones of the head, each on one block."""

    head: Any
    blocks: Sequence[int] | None
    scale: str

    # Heads that were fitted before on the same rows, None where not; see `reuse`. Used up by fit.
    _ready: Sequence[Any] | None = None

    def predict(self, X: Any) -> NDArray[Any]:
        """The label of each row (n,) with the highest score."""
        best = self._scores(X).argmax(axis=1)  # (n,)
        predicted: NDArray[Any] = self.classes_[best]  # (n,)
        return predicted

    def _scores(self, X: Any) -> NDArray[np.float64]:
        """(n, classes)."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any, groups: Any = None) -> Any:
        """Fit on X (n, d) with labels y (n,); `groups` (n,) are handed on.

        Raises
        ------
        DataError
            If the blocks don't add up to d, or y has one class.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])  # (n, d), (n,)
        return self._fit(X, y, groups)

    def fit_stream(self, stream: Stream, y: Any, groups: Any = None) -> Any:
        """Fit on rows that stay on disk; see `fit`."""
        self.n_features_in_ = stream.width
        return self._fit(stream, np.asarray(y), groups)

    def _fit(self, X: NDArray[Any] | Stream, y: NDArray[Any], groups: Any) -> Any:
        raise NotImplementedError

    def _start(self, y: NDArray[Any]) -> None:
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise DataError(
                f"{type(self).__name__} needs two classes, y has 1 class: {self.classes_[0]}",
                "Add images of another class.",
            )
        self.blocks_ = resolve_blocks(self.blocks, self.n_features_in_)

    def _fit_members(
        self, X: NDArray[Any] | Stream, y: NDArray[Any], groups: Any
    ) -> list[Pipeline]:
        """The members, fitted on all rows; of one whose head is ready only the scaling is."""
        made, self.member_seconds_ = self._members(), []
        ready = self._ready or [None] * len(made)
        for member, head in zip(made, ready, strict=True):
            started = time.perf_counter()
            if head is None:
                fit_with_routing(member, X, y, groups)
            else:
                member.steps[-1] = (member.steps[-1][0], head)
                fit_with_routing(member.steps[0][1], X, y)
            self.member_seconds_.append(time.perf_counter() - started)
        self._ready = None
        return made

    def _members(self) -> list[Pipeline]:
        """An unfitted clone of the head for each block, behind the block's own scaling."""
        made = []
        for part in slices(self.blocks_):
            head = _default_head() if self.head is None else clone(self.head)
            # The clone sees one block; the blocks of X would not add up to its columns.
            inner = [name for name in head.get_params() if name.rsplit("__", 1)[-1] == "blocks"]
            columns = ColumnTransformer([("scale", ConcatFusion(scale=self.scale), part)])
            made.append(make_pipeline(columns, head.set_params(**dict.fromkeys(inner))))
        return made

    def _checked(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        checked: NDArray[Any] = validate_data(
            self, X, reset=False, dtype=[np.float32, np.float64]
        )  # (n, d)
        return checked


class VoteFusion(LateFusion):
    """The mean, over the blocks, of the probabilities of one clone of the head on each.

    A head without probabilities votes with its decision values, and one without those with its
    label; there are then no probabilities.

    Parameters
    ----------
    head : sklearn classifier, default None
        None means the head "logreg".
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    scale : {"standard", "l2", "none"}, default "standard"
        What is done to each block before its head, see `concat.ConcatFusion`.
    calibrate : bool, default True
        Divide the logarithm of the mean by a temperature, if the heads keep what they have said
        of rows that they held out (`held_out_`: mlp, svm, logreg, lda, xgboost). A mean of several
        is less sure than each of them, and than it may be.

    Attributes
    ----------
    classes_ : array of labels
    blocks_ : tuple of int
    members_ : list of Pipeline
        Scaling and head of each block.
    temperature_ : float
        1 if there is nothing to learn it from.
    member_seconds_ : list of float
        What the fit of each took; of one whose head was ready, its scaling only.
    """

    def __init__(
        self,
        head: Any = None,
        blocks: Sequence[int] | None = None,
        scale: str = "standard",
        calibrate: bool = True,
    ) -> None:
        self.head = head
        self.blocks = blocks
        self.scale = scale
        self.calibrate = calibrate

    def _fit(self, X: NDArray[Any] | Stream, y: NDArray[Any], groups: Any) -> VoteFusion:
        self._start(y)
        self.members_ = self._fit_members(X, y, groups)
        self.temperature_ = self._temperature(y) if self.calibrate else 1.0
        return self

    def _temperature(self, y: NDArray[Any]) -> float:
        """Of the mean over what all members have held out."""
        heads = [_head_of(member) for member in self.members_]
        if not all(hasattr(head, "held_out_") for head in heads):
            return 1.0
        said = [dict(zip(*head.held_out_, strict=True)) for head in heads]  # by row, (classes,)
        rows = np.array(sorted(set.intersection(*map(set, said))), np.intp)  # (m,)
        if not len(rows):
            return 1.0
        mean = np.mean([[of[row] for row in rows] for of in said], axis=0)  # (m, classes)
        logs = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
        return temperature(logs, np.searchsorted(self.classes_, y[rows]))

    @available_if(_head_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        # A model that an earlier version has kept has none.
        return tempered(self._scores(X), getattr(self, "temperature_", 1.0))  # (n, classes)

    def _scores(self, X: Any) -> NDArray[np.float64]:
        X = self._checked(X)  # (n, d)
        scores: NDArray[np.float64] = np.mean(
            [member_scores(member, X) for member in self.members_], axis=0
        )  # (n, classes)
        return scores


class StackFusion(LateFusion):
    """A logistic regression on the probabilities of one clone of the head on each block.

    It learns from probabilities of rows that the clones were not fitted on: each of `cv` parts of
    the training rows in turn, so that a fit costs `cv` + 1 fits of every clone. A head without
    probabilities gives its decision values instead, and one without those its label.

    A class with fewer rows than `cv` lowers the number of parts to its rows. With a class of one
    row nothing can be held out: the regression then learns on the rows that the clones were fitted
    on, and trusts them too much.

    Parameters
    ----------
    head : sklearn classifier, default None
        None means the head "logreg".
    blocks : sequence of int, default None
        Width of each backbone's block; None means one block.
    scale : {"standard", "l2", "none"}, default "standard"
        What is done to each block before its head, see `concat.ConcatFusion`.
    cv : int, default 3
        Parts of the training rows, 2 or more.
    C : float, default 1.0
        Inverse strength of the regression's L2.
    random_state : int, RandomState or None, default 0
        Shuffles the rows into the parts.

    Attributes
    ----------
    classes_ : array of labels
    blocks_ : tuple of int
    members_ : list of Pipeline
        Scaling and head of each block, fitted on all rows.
    member_seconds_ : list of float
        What the fit of each took; of one whose head was ready, its scaling only.
    final_ : LogisticRegression
        On the members' scores side by side, (n, k * classes).
    """

    search_space: ClassVar[dict[str, Any]] = {"C": ("log", 1e-3, 10.0)}

    def __init__(
        self,
        head: Any = None,
        blocks: Sequence[int] | None = None,
        scale: str = "standard",
        cv: int = 3,
        C: float = 1.0,
        random_state: Any = 0,
    ) -> None:
        self.head = head
        self.blocks = blocks
        self.scale = scale
        self.cv = cv
        self.C = C
        self.random_state = random_state

    def _fit(self, X: NDArray[Any] | Stream, y: NDArray[Any], groups: Any) -> StackFusion:
        whole = isinstance(self.cv, (int, np.integer)) and not isinstance(self.cv, bool)
        if not whole or self.cv < 2:
            raise RecipeError(f"cv is {self.cv!r}", "Give a whole number above 1.")
        self._start(y)
        self.members_ = self._fit_members(X, y, groups)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        folds = inner_folds(y, groups, self.cv, seed)
        scores = self._held_out(X, y, folds, groups) if folds else self._side_by_side(X)
        self.final_ = LogisticRegression(C=self.C, max_iter=1000).fit(scores, y)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of `classes_`."""
        return self._scores(X)

    def _scores(self, X: Any) -> NDArray[np.float64]:
        scores = self._side_by_side(self._checked(X))  # (n, k * classes)
        proba: NDArray[np.float64] = self.final_.predict_proba(scores)  # (n, classes)
        return proba

    def _side_by_side(self, X: NDArray[Any] | Stream) -> NDArray[np.float64]:
        """The members' scores (n, k * classes)."""
        return np.concatenate([_scores_of(member, X) for member in self.members_], axis=1)

    def _held_out(
        self,
        X: NDArray[Any] | Stream,
        y: NDArray[Any],
        folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
        groups: Any,
    ) -> NDArray[np.float64]:
        """Scores (n, k * classes) of each row by members that were not fitted on it."""
        c = len(self.classes_)
        scores = np.empty((len(X), len(self.blocks_) * c))  # (n, k * classes)
        for train, held in folds:
            for i, member in enumerate(self._members()):
                mine = None if groups is None else groups[train]
                fitted = fit_with_routing(member, some_rows(X, train), y[train], mine)
                scores[held, i * c : (i + 1) * c] = _scores_of(fitted, some_rows(X, held))
        return scores


def _head_of(member: Any) -> Any:
    """The last step of pipelines within pipelines."""
    while isinstance(member, Pipeline):
        member = member.steps[-1][1]
    return member


def _scores_of(member: Any, X: NDArray[Any] | Stream) -> NDArray[np.float64]:
    """`member_scores`, also for rows on disk."""
    if isinstance(X, Stream):
        return by_blocks(partial(member_scores, member), X)
    return member_scores(member, X)


def member_scores(member: Any, X: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of a fitted classifier, else its decision values, else its labels as 0 and 1.

    Returns
    -------
    float64 array of shape (n, classes)
    """
    if hasattr(member, "predict_proba"):
        return np.asarray(member.predict_proba(X), dtype=np.float64)  # (n, classes)
    if hasattr(member, "decision_function"):
        values = np.asarray(member.decision_function(X), dtype=np.float64)  # (n,) for two classes
        return np.stack([-values, values], axis=1) if values.ndim == 1 else values  # (n, classes)
    predicted = np.asarray(member.predict(X))  # (n,)
    said: NDArray[np.bool_] = predicted[:, None] == member.classes_  # (n, classes)
    return said.astype(np.float64)  # (n, classes)
