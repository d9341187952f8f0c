"""Fit and score a classifier on every fold."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.display import html_table
from featcache.errors import DataError, counted
from featcache.fitting.checks import check_features
from featcache.fitting.executor import Executor, FoldTask, SharedContext, Task, executor_of, shared
from featcache.fitting.fitted_steps import FittedSteps
from featcache.fitting.fold import FoldResult
from featcache.fitting.grid import Candidate
from featcache.fitting.leakage import refuse_trained
from featcache.fitting.metrics import (
    fold_weights,
    interval,
    luck_of_seeds,
    positive_label,
    positive_scores,
    refit_inflation,
    seed_variance,
)
from featcache.fitting.pipeline import describe
from featcache.fitting.splits import (
    Fold,
    components,
    factorize,
    groups_to_keep,
    make_folds,
    seeded,
)
from featcache.store.features import Features


@dataclass(frozen=True, eq=False)
class Result:
    """What one candidate gave.

    Attributes
    ----------
    backbones : tuple of str
        Names of the blocks.
    fusion, head : str
        Registered names, or the classes' own.
    data : str
        The data set's name.
    keys : tuple of str
        Digest of each block's cache key.
    classes : list of str
        All labels of the features, sorted.
    folds : list of FoldResult
    interval : (low, high)
        95 % interval of the accuracy in `metrics`; rows linked by group or content count as what
        they are worth together.
    seed : int
        What the folds were drawn with where `evaluate` made them.
    positive : str
        The positive one of two classes; "" if they are not two.
    seeds : int
        How many it was fitted with: the folds are those of all of them.
    """

    backbones: tuple[str, ...]
    fusion: str
    head: str
    data: str
    keys: tuple[str, ...]
    classes: list[str]
    folds: list[FoldResult]
    interval: tuple[float, float]
    seed: int = 0
    positive: str = ""
    seeds: int = 1

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Result({self.name} on {self.data}: accuracy {self.metrics['accuracy']:.4f}, "
            f"95 % {low:.4f} … {high:.4f}, {counted(len(self.folds), 'fold')})"
        )

    def _repr_html_(self) -> str:
        sd = self.sd
        rows = [
            (name, *("–" if v != v else f"{v:.4f}" for v in (mean, sd[name])))
            for name, mean in self.metrics.items()
        ]
        return html_table(("metric", "mean", "sd over folds"), rows, repr(self))

    @property
    def name(self) -> str:
        """For instance "resnet18+mobilenet_v2.concat.mlp"."""
        return f"{'+'.join(self.backbones)}.{self.fusion}.{self.head}"

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric's mean over the folds in which it is defined; NaN where in none."""
        return {name: float(np.mean(v)) if len(v) else float("nan") for name, v in self._values()}

    @property
    def sd(self) -> dict[str, float]:
        """Each metric's standard deviation over folds (n - 1); NaN for fewer than two."""
        return self._spread(axis=0)

    @property
    def seed_sd(self) -> dict[str, float]:
        """Each metric's standard deviation over seeds (n - 1); NaN for fewer than two."""
        return self._spread(axis=1)

    @property
    def fit_seconds(self) -> float:
        """Of all folds together, as if run one after another."""
        return sum(fold.fit_seconds for fold in self.folds)

    @property
    def predict_seconds(self) -> float:
        """Of all folds together."""
        return sum(fold.predict_seconds for fold in self.folds)

    def _values(self) -> list[tuple[str, NDArray[np.float64]]]:
        table = {
            name: np.array([fold.metrics[name] for fold in self.folds])
            for name in self.folds[0].metrics
        }
        return [(name, values[~np.isnan(values)]) for name, values in table.items()]

    def _spread(self, axis: int) -> dict[str, float]:
        """Over the means of the folds, or of the seeds; one fold after another is of one seed."""
        found = {}
        for name, values in self._values():
            whole = len(values) % self.seeds == 0  # a metric is defined in a fold or it is not
            means = values.reshape(self.seeds, -1).mean(axis=axis) if whole else values[:0]
            found[name] = float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
        return found


def evaluate(
    classifier: Any,
    features: Features,
    *,
    folds: int | None = None,
    test_split: bool | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    split: Sequence[Fold] | None = None,
    gate: str = "refuse",
    keep: bool = False,
    positive: str | None = None,
) -> Result:
    """Fit a clone of the classifier on each fold's training rows and score its test rows.

    Everything that is learned, scaling included, is learned inside the training rows. A label
    that is only among the test rows of a fold can't be predicted: those rows count as wrong, with
    probability 0.

    Parameters
    ----------
    classifier : sklearn classifier
        From `make_classifier`, or any other; `blocks` parameters that are None are set to the
        features' blocks.
    features : Features
    folds, test_split, seed
        See `make_folds`.
    n_jobs : int, default 1
        Folds at a time, each in a process of its own.
    split : sequence of Fold, default None
        Ready-made folds, so that several candidates share them.
    gate : {"refuse", "warn", "off"}, default "refuse"
        What to do about features that look broken, see `checks.check_features`.
    keep : bool, default False
        Keep each fold's fitted classifier.
    positive : str, default None
        The positive one of two classes, which `precision_positive` and the like are of; by default
        the second in sorted order.

    Returns
    -------
    Result

    Raises
    ------
    CacheRefused
        If the features look broken, or a backbone was fine-tuned on rows that are tested.
    DataError
        If no folds can be made, or a fold is empty or has one class to train on.
    UnknownName, RecipeError
        If `positive` is no label, or the classes are not two.
    """
    wanted = positive_label(np.unique(features.y).tolist(), positive)
    check_features(features, gate)
    if split is None:
        split = make_folds(features, folds, test_split, seed=seed)
    candidate = Candidate(features.names, *describe(classifier))
    executor, steps = executor_of(n_jobs, len(split)), FittedSteps({candidate: []})
    results = evaluate_all({candidate: classifier}, features, split, steps, executor, seed, keep)
    ((_, result),) = results
    return with_positive(result, wanted)


def evaluate_all(
    classifiers: Mapping[Candidate, Any],
    features: Features,
    folds: Sequence[Fold],
    fitted_steps: FittedSteps,
    executor: Executor,
    seed: int = 0,
    keep: bool = False,
) -> Generator[tuple[Candidate, Result]]:
    """Fit and score candidates on the same folds.

    Parameters
    ----------
    classifiers : mapping of Candidate to sklearn classifier
        Unfitted.
    features : Features
        With the backbones of all candidates.
    folds : sequence of Fold
    fitted_steps : FittedSteps
        Plans the same candidates: says which has to wait for which.
    executor : Executor
    seed : int, default 0
        See `Result`.
    keep : bool, default False
        Keep each fold's fitted classifier.

    Yields
    ------
    Candidate, Result
        When its last fold is done; in the order of the plans, or as the executor is done.

    Raises
    ------
    CacheRefused, DataError, RecipeError
        As `evaluate`; what is being fitted then is lost.
    """
    left: deque[FoldTask] = deque()
    done: dict[Candidate, dict[int, FoldResult]] = {}

    def next_task() -> Task | None:
        if not left:
            candidate = fitted_steps.ready()
            if candidate is None:
                return None
            _check_split(features.select(candidate.backbones, vectors=False), folds)
            keys, done[candidate] = fitted_steps.plans[candidate], {}
            fitted_steps.next(candidate)
            wanted, classifier = fitted_steps.wanted(), classifiers[candidate]
            left.extend(
                FoldTask(candidate, classifier, place, keys, wanted, keep)
                for place in range(len(folds))
            )
        fit = left.popleft()
        return fit, fitted_steps.given(fit.fold, fit.keys)

    with shared(features, executor) as all_:
        mapped = all_ is not features
        context = SharedContext(all_, folds, groups_to_keep(features, folds), mapped)
        with closing(executor.run(context, next_task)) as outcomes:
            for fit, (result, steps) in outcomes:
                fitted_steps.put(fit.fold, steps)
                candidate, mine = fit.candidate, done[fit.candidate]
                mine[fit.fold] = result
                if len(mine) == len(folds):
                    fitted_steps.done(candidate)
                    chosen = features.select(candidate.backbones, vectors=False)
                    in_order = [mine[place] for place in range(len(folds))]
                    del done[candidate]
                    yield candidate, _result_of(candidate, chosen, folds, in_order, seed)


def over_seeds(results: Mapping[int, Result], features: Features, folds: Sequence[Fold]) -> Result:
    """The results of one candidate under several seeds as one: each fold as often as there are.

    Parameters
    ----------
    results : mapping of int to Result
        By the seed; of the first the fitted classifier is kept.
    features, folds
        What they are of.
    """
    first = next(iter(results.values()))
    if len(results) == 1:
        return first
    done = [
        replace(one, name=seeded(one.name, seed), classifier=one.classifier if not i else None)
        for i, (seed, result) in enumerate(results.items())
        for one in result.folds
    ]
    interval = accuracy_interval(features, folds, done)
    return replace(first, folds=done, interval=interval, seeds=len(results))


def with_positive(result: Result, label: str) -> Result:
    """The result with this label as the positive one of two classes."""
    if label == result.positive:
        return result
    folds = [
        replace(one, metrics=one.metrics | positive_scores(one.true, one.pred, label))
        for one in result.folds
    ]
    return replace(result, folds=folds, positive=label)


def _check_split(features: Features, split: Sequence[Fold]) -> None:
    """Refuse folds that can't be fitted or must not be scored; see `evaluate`."""
    for fold in split:
        _check_fold(fold, features)
    refuse_trained(features, split)


def _result_of(
    candidate: Candidate,
    features: Features,
    split: Sequence[Fold],
    done: Sequence[FoldResult],
    seed: int,
) -> Result:
    """What the folds, each in its place in `done`, come to together."""
    sources = factorize(features.sources)  # (n,)
    classes = np.unique(features.y).tolist()
    return Result(
        backbones=features.names,
        fusion=candidate.fusion,
        head=candidate.head,
        data=features.data,
        keys=features.keys,
        classes=classes,
        folds=[
            replace(one, train_images=len(np.unique(sources[fold.train])))
            for one, fold in zip(done, split, strict=True)
        ],
        interval=accuracy_interval(features, split, done),
        seed=seed,
        positive=positive_label(classes),
    )


def accuracy_interval(
    features: Features, split: Sequence[Fold], done: Sequence[FoldResult]
) -> tuple[float, float]:
    """95 % interval of the accuracy as `Result.metrics` has it, the mean over the folds.

    With several seeds, `done` holds all folds of each, one seed after another: it is of their mean.
    """
    tested = np.concatenate([fold.test for fold in split])
    images = len(np.unique(tested))
    trained = np.mean([len(np.unique(features.sources[fold.train])) for fold in split])
    right = np.concatenate([fold.true == fold.pred for fold in done]).reshape(-1, len(tested))
    units = components(features)[tested]
    weights = fold_weights(np.repeat(np.arange(len(split)), [len(fold.test) for fold in split]))
    return interval(
        right.mean(axis=0),
        units,
        weights,
        extra=seed_variance(luck_of_seeds(right, units, weights), len(right), len(right) - 1),
        most_rows=images,
        inflation=refit_inflation(
            len(split) * images // len(tested), float(trained), len(tested) / len(split)
        ),
    )


def _check_fold(fold: Fold, features: Features) -> None:
    if not len(fold.test):
        raise DataError(f"{fold.name} has no test rows", "Make the folds again.")
    labels = np.unique(features.y[fold.train])
    if len(labels) < 2:
        raise DataError(
            f"{fold.name} has {counted(len(fold.train), 'training row')} of "
            f"{counted(len(labels), 'class')}",
            "Every fold needs training rows of at least two classes.",
        )
    both = np.intersect1d(fold.train, fold.test)
    if len(both):
        raise DataError(
            f"{counted(len(both), 'row')} of {fold.name} both in training and test: "
            f"{features.ids[both[0]]}, …",
            "Make the folds again.",
        )
