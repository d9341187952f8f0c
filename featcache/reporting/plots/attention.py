"""Attention: how much weight a learned fusion gives each backbone, class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featcache.reporting.plots.style import new_figure
from featcache.reporting.run_reader import Contents

_NAMES_UP_TO = 60


@dataclass(frozen=True, eq=False)
class Attention:
    """Mean weights over the folds.

    Attributes
    ----------
    classes, backbones : list of str
    mean : float array of shape (classes, backbones)
    sd : float array of shape (classes, backbones), or None
        Over the folds; None for one.
    """

    classes: list[str]
    backbones: list[str]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64] | None


def attention(contents: Contents) -> Attention | None:
    """None where the fusion learns no weights."""
    if not contents.attention:
        return None
    first = contents.attention[0]
    names = ("classes", "backbones")
    same = [one for one in contents.attention if all(one[n] == first[n] for n in names)]
    weights = np.array([one["mean"] for one in same], np.float64)  # (folds, classes, backbones)
    return Attention(
        classes=[str(name) for name in first["classes"]],
        backbones=[str(name) for name in first["backbones"]],
        mean=weights.mean(axis=0),
        sd=weights.std(axis=0, ddof=1) if len(weights) > 1 else None,
    )


def plot_attention(contents: Contents) -> Figure | None:
    """A row for each class, a column for each backbone."""
    found = attention(contents)
    if found is None:
        return None
    rows, columns = found.mean.shape
    figure = new_figure(2.6 + 1.1 * columns, min(14.0, 1.6 + (0.3 if rows <= 30 else 0.14) * rows))
    axes = figure.add_subplot()
    low, high = np.nanmin(found.mean), np.nanmax(found.mean)
    image = axes.imshow(found.mean, cmap="Blues", aspect="auto", vmin=min(0.0, low), vmax=high)
    axes.set_xticks(range(columns), found.backbones, fontsize=8, parse_math=False,
                    rotation=30 if columns > 3 else 0)  # fmt: skip
    if rows <= _NAMES_UP_TO:
        axes.set_yticks(range(rows), found.classes, fontsize=8, parse_math=False)
    if rows <= 30:
        for i, j in np.ndindex(rows, columns):
            axes.text(j, i, f"{found.mean[i, j]:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if found.mean[i, j] > 0.6 * high else "black")  # fmt: skip
    axes.set_xlabel("backbone")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("mean weight")
    return figure
