"""Ranking curves: ROC and precision-recall, one class against the rest, with the folds' band."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from featcache.reporting.contents import Contents
from featcache.reporting.drawing import colour, legend, line, new_figure, tidy

_GRID = np.linspace(0, 1, 201)
_MOST_CLASSES = 6  # lines that can be told apart; of more classes the lowest are drawn

Floats = NDArray[np.float64]
Curve = Callable[[NDArray[np.bool_], Floats], Floats]


@dataclass(frozen=True, eq=False)
class _Line:
    """One class's curve on the grid: each fold's, and the area under it."""

    name: str
    folds: Floats  # (folds, grid)
    area: float


def roc_on_grid(is_class: NDArray[np.bool_], score: Floats) -> Floats:
    """The true positive rate at every false positive rate of the grid, shape (201,)."""
    false, true, _ = roc_curve(is_class, score)
    on_grid: Floats = np.interp(_GRID, false, true)
    on_grid[0] = 0.0
    return on_grid


def precision_on_grid(is_class: NDArray[np.bool_], score: Floats) -> Floats:
    """The best precision at a recall of at least each value of the grid, shape (201,)."""
    precision, recall, _ = precision_recall_curve(is_class, score)  # recall falls
    best = np.maximum.accumulate(precision)  # at this recall or a higher one
    places = np.searchsorted(recall[::-1], _GRID, side="left")
    on_grid: Floats = best[::-1][np.minimum(places, len(best) - 1)]
    return on_grid


def plot_roc(contents: Contents) -> Figure | None:
    """ROC curves; the band spans the folds of the mean over classes."""
    lines = _lines(contents, roc_on_grid, roc_auc_score)
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
    lines = _lines(contents, precision_on_grid, average_precision_score)
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
    contents: Contents, curve: Curve, area: Callable[[NDArray[np.bool_], Floats], float]
) -> list[_Line]:
    """Of two classes the second one's; of more the mean over all first, then the lowest."""
    if contents.proba is None or not len(contents.true):
        return []
    classes = contents.classes
    wanted = [1] if len(classes) == 2 else range(len(classes))
    names, lines = sorted(set(contents.fold.tolist())), []
    for place in wanted:
        folds, areas = [], []
        for name in names:
            rows = contents.fold == name
            is_class, score = contents.true[rows] == classes[place], contents.proba[rows, place]
            if is_class.any() and not is_class.all():
                folds.append(curve(is_class, score))
                areas.append(float(area(is_class, score)))
        if len(folds) == len(names):  # a fold without this class has no curve
            lines.append(_Line(classes[place], np.array(folds), float(np.mean(areas))))
    if len(lines) < 2:
        return lines
    mean = np.mean([one.folds for one in lines], axis=0)  # (folds, grid)
    overall = _Line(f"mean of {len(lines)} classes", mean, float(np.mean([x.area for x in lines])))
    return [overall, *sorted(lines, key=lambda one: one.area)[:_MOST_CLASSES]]


def _draw(axes: Axes, lines: list[_Line], area: str) -> None:
    for number, one in enumerate(lines):
        style = {"color": colour(number), "linestyle": line(number)}
        width = 2.2 if number == 0 else 1.1
        axes.plot(_GRID, one.folds.mean(axis=0), linewidth=width,
                  label=f"{one.name} ({area} {one.area:.3f})", **style)  # fmt: skip
    first = lines[0].folds
    if len(first) > 1:
        label = f"lowest to highest of {len(first)} folds"
        axes.fill_between(_GRID, first.min(axis=0), first.max(axis=0), color=colour(0), alpha=0.18,
                          linewidth=0, label=label)  # fmt: skip
