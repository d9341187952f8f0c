"""Reliability: whether what is said with 80 % confidence is right in 80 % of the cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featcache.fitting.metrics import calibration_error
from featcache.reporting.contents import Contents
from featcache.reporting.drawing import colour, legend, new_figure, tidy

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
