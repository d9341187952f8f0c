"""How good the predictions are, and how sure we can be of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from featcache.errors import RecipeError, UnknownName, counted, unknown

_ROUNDING = 1e-20  # variances below it are those of equal values
MANY_CLASSES = 200  # beyond it scikit-learn's curves and one-hot tables take minutes, and GBs
_AT_ONCE = 64  # columns
_WORST = 0.25  # degrees of freedom that the worst case counts for, see `_design_effect`


@dataclass(frozen=True)
class Metric:
    """What candidates may be ranked by.

    Attributes
    ----------
    name : str
        As in `scores`.
    label : str
        For a reader.
    proba : bool, default False
        Whether it takes probabilities.
    lower : bool, default False
        Whether lower is better.
    upper : float, default 1
        The largest that a row's score can be.
    """

    name: str
    label: str
    proba: bool = False
    lower: bool = False
    upper: float = 1.0

    def gain(self, one: float, other: float) -> float:
        """How much better one value is than the other; negative if worse."""
        return other - one if self.lower else one - other

    def difference(self, value: float, signed: bool = False) -> str:
        """A difference of two values, for a reader: "1.5 points", "0.012 nats", "+1.5 points"."""
        unit = "points" if self.upper == 1 else "nats" if self.name == "log_loss" else ""
        return f"{self.amount(value, signed)} {unit}".rstrip()

    def amount(self, value: float, signed: bool = False) -> str:
        """`difference` without its unit."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f}" if self.upper == 1 else f"{value:{sign}.4f}"


METRICS = {
    one.name: one
    for one in (
        Metric("accuracy", "accuracy"),
        Metric("balanced_accuracy", "balanced accuracy"),
        Metric("f1", "F1"),
        Metric("f1_positive", "F1 of the positive class"),
        Metric("auc", "AUC", proba=True),
        Metric("log_loss", "log loss", proba=True, lower=True, upper=math.inf),
        Metric("brier", "Brier score", proba=True, lower=True, upper=2.0),
    )
}
ACCURACY = METRICS["accuracy"]


def metric_of(name: str) -> Metric:
    """The metric of this name.

    Raises
    ------
    UnknownName
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def scores(
    true: NDArray[Any],
    pred: NDArray[Any],
    proba: NDArray[Any] | None,
    classes: Sequence[str],
) -> dict[str, float]:
    """Metrics of one set of predictions, each between 0 and 1 but for the log loss.

    Parameters
    ----------
    true, pred : str arrays of shape (n,)
    proba : float array of shape (n, classes), or None
        Columns in the order of `classes`, rows summing to 1.
    classes : sequence of str
        All labels, sorted.

    Returns
    -------
    dict
        `accuracy`; `balanced_accuracy` (mean recall over the classes that are in `true`);
        `precision`, `recall`, `f1` (macro over the classes in `true` or `pred`; 0 where nothing
        was predicted). With two classes also `positive_scores` of the second in sorted order. With
        `proba` also `auc` (two classes:
        of the positive one; more: one against the rest, macro; NaN where a class is not in
        `true`), `log_loss` (natural logarithm) and `ece` (see `calibration_error`).
    """
    # As numbers: text is compared slowly, and each row takes as much as the longest label.
    _, codes = np.unique(np.concatenate([classes, true, pred]), return_inverse=True)
    code, guess = codes[len(classes) :].reshape(2, -1)  # (n,), (n,)
    present = np.unique(code)
    macro = precision_recall_fscore_support(code, guess, average="macro", zero_division=0)
    found = {
        "accuracy": accuracy_score(code, guess),
        "balanced_accuracy": recall_score(
            code, guess, labels=present, average="macro", zero_division=0
        ),
        **dict(zip(("precision", "recall", "f1"), macro[:3], strict=True)),
    }
    if len(classes) == 2:
        found |= positive_scores(true, pred, classes[1])
    if proba is not None:
        found["auc"] = _auc(true, proba, classes)
        if len(classes) > MANY_CLASSES:
            found["log_loss"] = row_scores("log_loss", true, pred, proba, classes).mean()
        else:
            found["log_loss"] = log_loss(true, proba, labels=list(classes))
        found["ece"] = calibration_error(true, proba, classes)
    return {name: float(value) for name, value in found.items()}


def positive_scores(true: NDArray[Any], pred: NDArray[Any], label: str) -> dict[str, float]:
    """`precision_positive`, `recall_positive` and `f1_positive` of one label; 0 where undefined."""
    found = precision_recall_fscore_support(
        true, pred, labels=[label], average="macro", zero_division=0
    )
    names = ("precision_positive", "recall_positive", "f1_positive")
    return {name: float(value) for name, value in zip(names, found[:3], strict=True)}


def positive_label(classes: Sequence[str], label: str | None = None) -> str:
    """The positive one of two classes: the label, or by default the second; "" if not of two.

    Raises
    ------
    RecipeError
        If a label is given, and the classes are not two.
    UnknownName
        If it is none of them.
    """
    if label is None:
        return str(classes[1]) if len(classes) == 2 else ""
    if len(classes) != 2:
        raise RecipeError(
            f"positive is {label!r}, and there are {counted(len(classes), 'class')}",
            "A positive class is one of two: leave it out.",
        )
    if label not in classes:
        raise UnknownName(
            f"unknown label {label!r}", f"The labels are {classes[0]} and {classes[1]}."
        )
    return label


def _auc(true: NDArray[Any], proba: NDArray[Any], classes: Sequence[str]) -> float:
    if not np.isin(classes, true).all():
        return float("nan")
    if len(classes) == 2:
        return float(roc_auc_score(true == classes[1], proba[:, 1]))
    if len(classes) > MANY_CLASSES:
        code = np.searchsorted(classes, true)  # (n,)
        areas = [
            _share_below(score[code != label], score[code == label]).mean()
            for label, score in enumerate(columns(proba))
        ]
        return float(np.mean(areas))
    return float(
        roc_auc_score(true, proba, multi_class="ovr", average="macro", labels=list(classes))
    )


def columns(proba: NDArray[Any], rows: NDArray[Any] | None = None) -> Iterator[NDArray[Any]]:
    """Each column of (n, classes), or of some rows of it, in one piece of memory."""
    for start in range(0, proba.shape[1], _AT_ONCE):
        part = proba[:, start : start + _AT_ONCE]
        yield from np.ascontiguousarray((part if rows is None else part[rows]).T)


def calibration_error(
    true: NDArray[Any], proba: NDArray[Any], classes: Sequence[str], bins: int = 15
) -> float:
    """Expected calibration error of the most probable class.

    The rows are put in `bins` bins of equal width by their highest probability; the error is the
    mean over rows of the distance between a bin's mean probability and its accuracy
    (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence = proba.max(axis=1)  # (n,)
    right = proba.argmax(axis=1) == np.searchsorted(classes, true)  # (n,)
    # Bins are open on the left, (0, 1/15], as in the paper.
    bin_ = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (n,)
    gaps = np.bincount(bin_, weights=confidence - right, minlength=bins)  # (bins,)
    return float(np.abs(gaps).sum() / len(true))


def interval(
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    most_rows: float = math.inf,
    inflation: float = 1.0,
    about: float | None = None,
    upper: float = 1.0,
    extra: float = 0.0,
) -> tuple[float, float]:
    """95 % interval of a weighted mean of scores between 0 and 1, as of an accuracy.

    Wilson's, which is never of zero width and stays inside 0 … 1 (Wilson 1927,
    doi:10.1080/01621459.1927.10502953; Brown, Cai & DasGupta 2001, doi:10.1214/ss/1009213286). Its
    number of rows is the effective one: the number that gives a mean of independent rows the
    variance that this mean has. If rows belong together, that variance is the one between groups.
    Student's t with one degree of freedom less than there are groups, or rows, takes the place of
    1.96 (Korn & Graubard 1998, Survey Methodology 24, 193-201; Franco, Little, Louis & Slud 2019,
    doi:10.1093/jssam/smy019).

    Scores without an upper end, as of the log loss, have a symmetric interval on the log scale. Its
    variance is that of two more rows, one nat above the mean and one below: never 0.

    Parameters
    ----------
    scores : float or bool array of shape (n,)
        Whether each row is right; or from `row_scores`.
    groups : array of shape (n,), default None
        Rows that share a value belong together; "" or None: each row alone.
    weights : float array of shape (n,), default None
        None: all alike.
    most_rows : float, default infinity
        As many effective rows at most.
    inflation : float, default 1
        The variance is multiplied by it, see `refit_inflation`.
    about : float, default None
        The middle, if it is another than the mean of the scores.
    upper : float, default 1
        The largest that a score can be; infinity for none.
    extra : float, default 0
        Added to the variance of the mean, see `seed_variance`.

    Returns
    -------
    (low, high) : floats
        0 and `upper` if all rows are of one group: nothing says how far another would differ.
    """
    value = np.asarray(scores, float) / (upper if math.isfinite(upper) else 1)  # (n,)
    share = shares(weights, len(value))  # (n,)
    unit = unit_codes(groups, len(value))  # (n,)
    units = int(unit.max()) + 1
    if units == 1:
        return 0.0, upper
    apart = share * (value - share @ value)  # (n,)
    rows = 1 / float(share @ share)
    alone = float(apart @ apart) * len(value) / (len(value) - 1)
    effect, reach = _design_effect(apart, share, unit), float(stats.t.ppf(0.975, units - 1))
    if math.isinf(upper):
        middle = float(share @ value) if about is None else about
        reach *= math.sqrt(inflation * effect * (alone + 2 / rows**2) + extra)
        return _on_the_log_scale(middle, reach)
    mean = float(np.clip(share @ value, 0, 1))
    if alone > _ROUNDING:
        rows = min(rows, mean * (1 - mean) / alone)
    rows = min(rows / effect, most_rows) / inflation
    if 0 < mean < 1:
        rows = 1 / (1 / rows + extra / upper**2 / (mean * (1 - mean)))
    low, high = _wilson(mean if about is None else about / upper, rows, reach)
    return upper * low, upper * high


def refit_inflation(folds: int, train: float, test: float) -> float:
    """What the variance of an accuracy over rows is multiplied by if they were tested in folds.

    Each fold's classifier depends on its training rows too, and how much can't be told without
    bias from the folds (Bengio & Grandvalet 2004, JMLR 5, 1089-1105). 1 + test / train, 1.25 for
    five folds, is what the simulations in docs/statistics.md ask for from 50 rows on; a difference
    of two candidates takes more, see `significance.fold_inflation`.

    Parameters
    ----------
    folds : int
        Of one repeat; 1 for a test split.
    train, test : float
        Rows of one fold, or their means.
    """
    return 1.0 if folds < 2 else 1 + test / train


def luck_of_seeds(
    scores: ArrayLike, units: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """The variance between the means of seeds of which the rows say nothing; 0 for one seed.

    It is that of better and worse seeds: what rows make of it that are right under one seed and
    wrong under another is taken off, since the variance between rows has it already. An estimate
    without bias, so it may be below 0.

    Parameters
    ----------
    scores : float array of shape (seeds, n)
    units, weights
        See `interval`.
    """
    table = np.asarray(scores, float)
    seeds, n = table.shape
    if seeds < 2:
        return 0.0
    share, unit = shares(weights, n), unit_codes(units, n)
    totals = np.stack([np.bincount(unit, weights=share * row) for row in table])  # (seeds, units)
    return float(totals.sum(axis=1).var(ddof=1) - totals.var(axis=0, ddof=1).sum())


def seed_variance(luck: float, seeds: int, freedom: int, pairs: int = 1) -> float:
    """What the luck of seeds adds to the variance of a mean over them.

    Few seeds say little of it, so it is multiplied by the square of Student's t over the Gaussian's
    (Banerjee 1960, Sankhyā 22, 357-358).

    Parameters
    ----------
    luck : float
        See `luck_of_seeds`.
    seeds : int
    freedom : int
        Degrees of freedom that `luck` is estimated with.
    pairs : int, default 1
        How many are tested at once: the more, the further out is the t that matters.
    """
    if seeds < 2:
        return 0.0
    tail = 0.025 / pairs
    few = float(stats.t.isf(tail, freedom) / stats.norm.isf(tail))
    return max(luck, 0.0) / seeds * few**2


def row_scores(
    metric: str,
    true: NDArray[Any],
    pred: NDArray[Any],
    proba: NDArray[Any] | None,
    classes: Sequence[str],
    positive: str = "",
) -> NDArray[np.float64]:
    """A score for each row, whose mean is the metric and whose spread is the metric's.

    Where a metric is no mean over rows (balanced accuracy, F1, AUC), a row's score is the metric
    plus n times the row's influence on it, so that the variance of the scores' mean is that of the
    metric, as the bootstrap finds it in the limit (infinitesimal jackknife: Efron 1982, "The
    jackknife, the bootstrap and other resampling plans", chapter 6; for the AUC DeLong, DeLong &
    Clarke-Pearson 1988, doi:10.2307/2531595).

    Parameters
    ----------
    metric : str
        A name in `METRICS`.
    true, pred, proba, classes
        See `scores`.
    positive : str, default ""
        The positive one of two classes, for "f1_positive".

    Returns
    -------
    float array of shape (n,)
        NaN if the metric is not defined.
    """
    code, names = np.searchsorted(classes, true), np.asarray(classes)  # (n,)
    if metric == "accuracy":
        return np.asarray(true == pred, float)
    if metric == "balanced_accuracy":
        return _recall_scores(np.asarray(true == pred, float), code)
    if metric == "f1":
        return _f1_scores(code, np.searchsorted(names, pred))
    if metric == "f1_positive":
        if positive not in classes:
            return np.full(len(code), np.nan)
        return _f1_scores(np.asarray(true != positive, int), np.asarray(pred != positive, int), 1)
    if proba is None:
        return np.full(len(code), np.nan)
    if metric == "auc":
        return _auc_scores(code, proba)
    if metric == "log_loss":
        own = proba[np.arange(len(code)), code] / proba.sum(axis=1)
        return np.asarray(-np.log(np.clip(own, np.finfo(proba.dtype).eps, 1)), float)
    wanted = np.eye(len(names))[code]  # (n, classes)
    return np.asarray(((proba - wanted) ** 2).sum(axis=1), float)


def scores_in_folds(
    metric: str,
    true: NDArray[Any],
    pred: NDArray[Any],
    proba: NDArray[Any] | None,
    classes: Sequence[str],
    folds: NDArray[Any],
    positive: str = "",
) -> NDArray[np.float64]:
    """`row_scores` of each fold (n,), for metrics that are means over the folds; NaN in a fold
    in which the metric is not defined.
    """
    found = np.full(len(true), np.nan)
    for name in np.unique(folds):
        rows = folds == name
        part = None if proba is None else proba[rows]
        found[rows] = row_scores(metric, true[rows], pred[rows], part, classes, positive)
    return found


def most_rows(metric: str, true: NDArray[Any], positive: str = "") -> float:
    """As many rows as a metric's interval counts at most: a mean over classes lives off small ones.

    A mean of recalls of equal size p has the variance p (1 - p) / rows of so many rows.
    """
    if metric == "f1_positive":
        return float(max(int((true == positive).sum()), 1))
    if metric not in ("balanced_accuracy", "f1"):
        return math.inf
    every = np.unique(true, return_counts=True)[1]
    return len(every) ** 2 / float((1 / every).sum())


def metric_intervals(
    true: NDArray[Any],
    pred: NDArray[Any],
    proba: NDArray[Any] | None,
    classes: Sequence[str],
    *,
    folds: NDArray[Any],
    groups: ArrayLike | None = None,
    inflation: float = 1.0,
    positive: str = "",
) -> dict[str, tuple[float, float]]:
    """95 % intervals of every metric but the accuracy, each as a mean over the folds.

    Parameters
    ----------
    true, pred, proba, classes, positive
        See `row_scores`.
    folds : array of shape (n,)
        In which each row was tested.
    groups : array of shape (n,), default None
    inflation : float, default 1
        See `interval`.

    Returns
    -------
    dict
        By the metrics' names; without those that are undefined in every fold.
    """
    linked = np.arange(len(true)) if groups is None else np.asarray(groups)
    found = {}
    for metric in METRICS.values():
        if metric is ACCURACY:
            continue
        scored = scores_in_folds(metric.name, true, pred, proba, classes, folds, positive)
        known = ~np.isnan(scored)
        if known.any():
            found[metric.name] = interval(
                scored[known], linked[known], fold_weights(folds[known]),
                most_rows=most_rows(metric.name, true, positive), inflation=inflation,
                upper=metric.upper,
            )  # fmt: skip
    return found


def fold_weights(folds: NDArray[Any]) -> NDArray[np.float64]:
    """A weight for each row, with which the mean over rows is the mean over the folds' means."""
    _, fold, size = np.unique(folds, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(size) * size[fold]), float)


def shares(weights: ArrayLike | None, rows: int) -> NDArray[np.float64]:
    """The weights as parts of 1, shape (rows,)."""
    given = np.ones(rows) if weights is None else np.asarray(weights, float)
    return np.asarray(given / given.sum(), float)


def unit_codes(groups: ArrayLike | None, rows: int) -> NDArray[np.intp]:
    """A number from 0 on for each row, equal for those of a group; "" is no group."""
    if groups is None:
        return np.arange(rows)
    _, unit = np.unique(np.asarray(groups), return_inverse=True)
    unit = np.where(np.asarray(groups) == "", rows + np.arange(rows), unit)
    return np.asarray(np.unique(unit, return_inverse=True)[1], np.intp)


def _design_effect(
    apart: NDArray[np.float64], share: NDArray[np.float64], unit: NDArray[np.intp]
) -> float:
    """How much more the mean varies because rows belong together; 1 if each stands alone.

    Few groups say little of that, above all if most of them are all right. So the worst case, that
    rows of a group are equal, counts as a quarter of a degree of freedom beside those that the
    groups have: 2 / variance of the estimated variance, relative to its square (Satterthwaite
    1946, doi:10.2307/3002019). How much it counts is set by the simulations in docs/statistics.md.
    """
    size = np.bincount(unit, weights=share)  # (units,)
    units = len(size)
    if units == len(unit):
        return 1.0
    scale = units / (units - 1)
    worst = scale * float(size @ size / (share @ share))
    total = np.bincount(unit, weights=apart)  # (units,)
    alone, between = float(apart @ apart), float(total @ total)
    if min(between, alone) < _ROUNDING:
        return worst
    known = 2 / max(float((total**4).sum()) / between**2 - 1 / units, 1 / units)
    effect = float(np.clip(scale * between / alone, 1, worst))
    return (known * effect + _WORST * worst) / (known + _WORST)


def _wilson(mean: float, rows: float, reach: float) -> tuple[float, float]:
    """Wilson's interval for a share of so many rows, `reach` standard errors to each side."""
    square = reach**2 / rows
    middle = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * mean * (1 - mean) + square**2 / 4) / (1 + square)
    # Exactly, 0 and 1 are ends of the intervals of 0 and 1.
    return max(0.0, min(middle - half, mean)), min(1.0, max(middle + half, mean))


def _on_the_log_scale(mean: float, reach: float) -> tuple[float, float]:
    """The interval of a mean above 0 with this half width, symmetric on the log scale.

    Of a mean less than the half width the logarithm says nothing: its end goes on as a line.
    """
    if reach < mean:
        return mean * math.exp(-reach / mean), mean * math.exp(reach / mean)
    return 0.0, mean + (math.e - 1) * reach


def _recall_scores(right: NDArray[np.float64], code: NDArray[np.intp]) -> NDArray[np.float64]:
    _, place, size = np.unique(code, return_inverse=True, return_counts=True)
    recall = np.bincount(place, weights=right) / size  # (present classes,)
    influence = (right - recall[place]) / (len(size) * size[place])
    return np.asarray(recall.mean() + len(right) * influence, float)


def _f1_scores(
    code: NDArray[np.intp], guess: NDArray[np.intp], first: int | None = None
) -> NDArray[np.float64]:
    """F1 of a class is 2 hits / (rows of it + guesses of it); the mean over all, or the first."""
    classes = int(max(code.max(), guess.max())) + 1
    both = np.bincount(code, minlength=classes) + np.bincount(guess, minlength=classes)
    f1 = 2 * np.bincount(code[code == guess], minlength=classes) / np.maximum(both, 1)  # (classes,)
    mine = (both > 0) & (np.arange(classes) < (classes if first is None else first))
    count = max(int(np.count_nonzero(mine)), 1)
    used = np.where(mine, np.maximum(both, 1) * float(count), np.inf)
    parts = 2 * (code == guess) / used[code] - f1[code] / used[code] - f1[guess] / used[guess]
    return np.asarray(f1[mine].sum() / count + len(code) * parts, float)


def _auc_scores(code: NDArray[np.intp], proba: NDArray[Any]) -> NDArray[np.float64]:
    n, classes = proba.shape
    if len(np.unique(code)) < classes:
        return np.full(n, np.nan)
    asked = [1] if classes == 2 else range(classes)
    total, mean = np.zeros(n), 0.0
    for label, score in enumerate(columns(proba)):
        if label not in asked:
            continue
        of_it = code == label
        one, rest = score[of_it], score[~of_it]
        above = _share_below(rest, one)  # of the others, below each of the class
        beneath = 1 - _share_below(one, rest)
        auc = above.mean()
        mean += float(auc) / len(asked)
        total[of_it] += (above - auc) / (len(one) * len(asked))
        total[~of_it] += (beneath - auc) / (len(rest) * len(asked))
    return np.asarray(mean + n * total, float)


def _share_below(values: NDArray[Any], marks: NDArray[Any]) -> NDArray[np.float64]:
    """The share of the values below each mark; those equal to it count by half."""
    ordered = np.sort(values)
    sides = (np.searchsorted(ordered, marks, side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(values)), float)
