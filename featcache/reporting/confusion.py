"""Confusion: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from featcache.reporting.contents import Contents
from featcache.reporting.drawing import new_figure

_NUMBERS_UP_TO = 20  # classes: beyond it a cell has no room for text
_NAMES_UP_TO = 60


def confusion(contents: Contents) -> NDArray[np.int64]:
    """Counts of shape (classes, classes): a row for each true class."""
    table: NDArray[np.int64] = confusion_matrix(
        contents.true, contents.pred, labels=contents.classes
    )
    return table


def rates(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row's shares; 0 in a row without images."""
    totals = counts.sum(axis=1, keepdims=True)  # (classes, 1)
    shares: NDArray[np.float64] = counts / np.maximum(totals, 1)
    return shares


def worst_pairs(
    counts: NDArray[np.int64], classes: Sequence[str], most: int = 8
) -> list[tuple[str, str, int, float]]:
    """True class, predicted class, count and share of the true class; the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    share = rates(counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        (classes[i], classes[j], int(wrong[i, j]), float(share[i, j]))
        for i, j in places
        if wrong[i, j]
    ]


def plot_confusion(contents: Contents) -> Figure | None:
    """Shade by the share of the true class; in each cell that share in per cent, and the count."""
    counts, names = confusion(contents), contents.classes
    if not counts.sum():
        return None
    share, n = rates(counts), len(names)
    with_numbers = n <= _NUMBERS_UP_TO
    side = min(11.0, max(3.4, (0.62 if with_numbers else 0.2) * n + 1.8))
    figure = new_figure(side + 0.5, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= _NAMES_UP_TO:
        small = 8 if with_numbers else 5
        axes.set_xticks(range(n), names, rotation=90 if n > 4 else 0, fontsize=small,
                        parse_math=False)  # fmt: skip
        axes.set_yticks(range(n), names, fontsize=small, parse_math=False)
    if with_numbers:
        for i, j in np.ndindex(n, n):
            if counts[i, j]:
                axes.text(j, i, f"{100 * share[i, j]:.3g}%\n{counts[i, j]:,}", ha="center",
                          va="center", fontsize=6.5,
                          color="white" if share[i, j] > 0.55 else "black")  # fmt: skip
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("share of the true class")
    return figure
