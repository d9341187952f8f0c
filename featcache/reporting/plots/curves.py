"""Curves of a run: learning, ROC and precision-recall, reliability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from featcache.fitting.metrics import calibration_error, columns
from featcache.reporting.plots.style import colour, legend, line, new_figure, tidy
from featcache.reporting.run_reader import Contents

# What a history's columns are called, and how they are drawn: training full, validation dashed.
_DRAWN = {
    "train_loss": ("loss", "training", "-", 0),
    "val_loss": ("loss", "validation", "--", 1),
    "train_accuracy": ("accuracy", "training", "-", 0),
    "val_accuracy": ("accuracy", "validation", "--", 1),
}


def histories(folds: Sequence[Mapping[str, Any]]) -> list[dict[str, list[float]]]:
    """The curves of each fold that has some, without what is empty or no numbers."""
    kept = []
    for fold in folds:
        history = fold.get("history")
        curves = {
            name: [float(value) for value in values]
            for name, values in (history if isinstance(history, dict) else {}).items()
            if name in _DRAWN and isinstance(values, list) and values and _are_numbers(values)
        }
        if curves:
            kept.append(curves)
    return kept


def plot_learning_curves(folds: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss on the left, accuracy on the right; thin lines are folds, the thick one their mean.

    Parameters
    ----------
    folds : sequence of mapping
        Of metrics.json.

    Returns
    -------
    Figure or None
        None where the head keeps no history.
    """
    runs = histories(folds)
    panels = [kind for kind in ("loss", "accuracy")
              if any(_DRAWN[name][0] == kind for run in runs for name in run)]  # fmt: skip
    if not panels:
        return None
    figure = new_figure(4.4 * len(panels), 3.2)
    for place, kind in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in _DRAWN:
            curves = [run[name] for run in runs if run.get(name)]
            if _DRAWN[name][0] == kind and curves:
                _draw_learning(axes, name, curves)
        title = f"{len(runs)} folds: thin; mean: thick" if len(runs) > 1 else ""
        tidy(axes, "epoch", "loss (nats)" if kind == "loss" else kind, title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    return figure


def _draw_learning(axes: Axes, name: str, curves: Sequence[list[float]]) -> None:
    _, label, style, number = _DRAWN[name]
    options: dict[str, Any] = {"color": colour(number), "linestyle": style}
    longest = max(len(curve) for curve in curves)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, alpha=0.35, linewidth=0.8, **options)
    # Folds stop at different epochs: the mean goes as far as all of them do.
    shared = min(len(curve) for curve in curves)
    mean = np.mean([curve[:shared] for curve in curves], axis=0)  # (shared,)
    marks: dict[str, Any] = {
        "marker": "os"[number],
        "markersize": 3,
        "markevery": max(1, longest // 10),
    }
    axes.plot(range(1, shared + 1), mean, linewidth=1.8, label=label, **marks, **options)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


GRID = np.linspace(0, 1, 201)
_MOST_CLASSES = 6  # lines that can be told apart; of more classes the lowest are drawn

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Line:
    """One class's curve on the grid: each fold's, and the area under it."""

    name: str
    folds: Floats  # (folds, grid)
    area: float


@dataclass(frozen=True, eq=False)
class Ranks:
    """How the rows of a class stand among all, at each of their different scores, highest first.

    Only there a curve has corners: with few rows of a class it is cheap, however many others
    there are.
    """

    hits: Floats  # share of the class with this score or more
    more: Floats  # rows of the rest with more
    least: Floats  # rows of the rest with this score or more
    rows: int  # of the class
    rest: int

    @classmethod
    def of(cls, is_class: NDArray[np.bool_], score: NDArray[Any]) -> Ranks:
        if np.isnan(score).any():
            raise ValueError("probabilities that are no numbers")
        own, rest = np.sort(score[is_class]), np.sort(score[~is_class])
        marks = np.unique(own)[::-1]
        hits = (len(own) - np.searchsorted(own, marks)) / len(own)
        more = len(rest) - np.searchsorted(rest, marks, "right")
        least = len(rest) - np.searchsorted(rest, marks, "left")
        return cls(hits, more.astype(float), least.astype(float), len(own), len(rest))

    def roc(self) -> Floats:
        """The true positive rate at every false positive rate of the grid, shape (201,)."""
        before = np.concatenate([[0.0], self.hits[:-1]])
        false = np.stack([self.more, self.least], axis=1).ravel() / self.rest
        true = np.stack([before, self.hits], axis=1).ravel()
        on_grid: Floats = np.interp(GRID, [0.0, *false, 1.0], [0.0, *true, 1.0])
        on_grid[0] = 0.0
        return on_grid

    def roc_area(self) -> float:
        steps = np.diff(self.hits, prepend=0.0)
        return float((steps * (1 - (self.more + self.least) / (2 * self.rest))).sum())

    def precision(self) -> Floats:
        """The best precision at a recall of at least each value of the grid, shape (201,)."""
        own = self.hits * self.rows
        best = np.maximum.accumulate((own / (own + self.least))[::-1])[::-1]
        places = np.searchsorted(self.hits, GRID, side="left")
        on_grid: Floats = best[np.minimum(places, len(best) - 1)]
        on_grid[0] = 1.0
        return on_grid

    def precision_area(self) -> float:
        own = self.hits * self.rows
        return float((np.diff(self.hits, prepend=0.0) * own / (own + self.least)).sum())


def plot_roc(contents: Contents) -> Figure | None:
    """ROC curves; the band spans the folds of the mean over classes."""
    lines = _lines(contents, Ranks.roc, Ranks.roc_area)
    if not lines:
        return None
    figure = new_figure(4.8, 4.3)
    axes = figure.add_subplot()
    axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.8, linestyle=":", label="chance")
    _draw(axes, lines, "AUC")
    tidy(axes, "false positive rate", "true positive rate")
    axes.set_aspect("equal")
    legend(axes, loc="lower right")
    return figure


def plot_precision_recall(contents: Contents) -> Figure | None:
    """Precision-recall curves; the band spans the folds of the mean over classes."""
    lines = _lines(contents, Ranks.precision, Ranks.precision_area)
    if not lines:
        return None
    figure = new_figure(4.8, 4.3)
    axes = figure.add_subplot()
    _draw(axes, lines, "AP")
    tidy(axes, "recall", "precision")
    axes.set_ylim(min(0.5, float(min(one.folds.min() for one in lines))), 1.02)
    legend(axes, loc="lower left")
    return figure


def _lines(
    contents: Contents, curve: Callable[[Ranks], Floats], area: Callable[[Ranks], float]
) -> list[_Line]:
    """Of two classes the positive one's; of more the mean over all first, then the lowest."""
    if contents.proba is None or not len(contents.true):
        return []
    classes = contents.classes
    positive = contents.run.positive
    wanted = [classes.index(positive)] if positive in classes else range(len(classes))
    number = {label: place for place, label in enumerate(classes)}
    code = np.array([number[label] for label in contents.true.tolist()])  # (n,)
    names = sorted(set(contents.fold.tolist()))
    folds: list[list[Floats]] = [[] for _ in classes]
    areas: list[list[float]] = [[] for _ in classes]
    for name in names:
        rows = np.flatnonzero(contents.fold == name)
        for place, score in enumerate(columns(contents.proba, rows)):
            is_class = code[rows] == place
            if place in wanted and is_class.any() and not is_class.all():
                ranks = Ranks.of(is_class, score)
                folds[place].append(curve(ranks))
                areas[place].append(area(ranks))
    lines = [
        _Line(classes[place], np.array(folds[place]), float(np.mean(areas[place])))
        for place in wanted
        if len(folds[place]) == len(names)  # a fold without this class has no curve
    ]
    if len(lines) < 2:
        return lines
    mean = np.mean([one.folds for one in lines], axis=0)  # (folds, grid)
    overall = _Line(f"mean of {len(lines)} classes", mean, float(np.mean([x.area for x in lines])))
    return [overall, *sorted(lines, key=lambda one: one.area)[:_MOST_CLASSES]]


def _draw(axes: Axes, lines: list[_Line], area: str) -> None:
    for number, one in enumerate(lines):
        style = {"color": colour(number), "linestyle": line(number)}
        width = 2.2 if number == 0 else 1.1
        axes.plot(GRID, one.folds.mean(axis=0), linewidth=width,
                  label=f"{one.name} ({area} {one.area:.3f})", **style)  # fmt: skip
    first = lines[0].folds
    if len(first) > 1:
        label = f"lowest to highest of {len(first)} folds"
        axes.fill_between(GRID, first.min(axis=0), first.max(axis=0), color=colour(0), alpha=0.18,
                          linewidth=0, label=label)  # fmt: skip


_BINS = 15  # as in `metrics.calibration_error`


@dataclass(frozen=True, eq=False)
class Reliability:
    """Rows of all folds together, in bins of equal width of their highest probability.

    Attributes
    ----------
    count : int array of shape (15,)
    confidence, accuracy : float arrays of shape (15,)
        Mean of each bin; NaN in an empty one.
    ece : float
        Expected calibration error, see `metrics.calibration_error`.
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    ece: float


def reliability(contents: Contents) -> Reliability | None:
    """None where the head gives no probabilities."""
    if contents.proba is None or not len(contents.true):
        return None
    highest = contents.proba.max(axis=1)  # (n,)
    right = np.asarray(contents.classes)[contents.proba.argmax(axis=1)] == contents.true  # (n,)
    bin_ = np.clip(np.ceil(highest * _BINS).astype(int) - 1, 0, _BINS - 1)  # (n,)
    count = np.bincount(bin_, minlength=_BINS)
    rows = np.where(count > 0, count, np.nan)  # (15,), NaN where there is nothing to divide
    return Reliability(
        count=count,
        confidence=np.bincount(bin_, weights=highest, minlength=_BINS) / rows,
        accuracy=np.bincount(bin_, weights=right, minlength=_BINS) / rows,
        ece=calibration_error(contents.true, contents.proba, contents.classes, _BINS),
    )


def plot_reliability(contents: Contents) -> Figure | None:
    """Accuracy against confidence above, how many images there are below."""
    found = reliability(contents)
    if found is None:
        return None
    figure = new_figure(4.8, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, _BINS + 1)[:-1]
    there = found.count > 0
    above.plot((0, 1), (0, 1), color="#666666", linestyle=":", linewidth=1, label="perfect")
    above.bar(edges[there], found.accuracy[there], width=1 / _BINS, align="edge",
              color="#56B4E9", edgecolor="#0072B2", linewidth=0.6, label="accuracy")  # fmt: skip
    above.plot(found.confidence[there], found.accuracy[there], marker="o", markersize=4,
               color=colour(1), linewidth=1, label="at the mean confidence")  # fmt: skip
    tidy(above, "", "accuracy", f"calibration error (ECE) {found.ece:.4f}")
    above.set_ylim(0, 1.03)
    legend(above, loc="upper left")
    below.bar(edges, found.count, width=1 / _BINS, align="edge", color="#BBBBBB",
              edgecolor="#666666", linewidth=0.6)  # fmt: skip
    tidy(below, "highest probability (confidence)", "images")
    below.set_xlim(0, 1)
    return figure
