"""Learning curves: loss and accuracy of training and validation over the epochs, every fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from featcache.reporting.drawing import colour, legend, new_figure, tidy

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
                _draw(axes, name, curves)
        title = f"{len(runs)} folds: thin; mean: thick" if len(runs) > 1 else ""
        tidy(axes, "epoch", "loss (nats)" if kind == "loss" else kind, title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    return figure


def _draw(axes: Axes, name: str, curves: Sequence[list[float]]) -> None:
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
