"""Plots of features: where images lie in two dimensions, and which backbone a head attends to."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featcache.atomic import regular
from featcache.csv_cells import read_cell, row_writer
from featcache.errors import counted
from featcache.reporting.html import write_text
from featcache.reporting.plots.style import (
    COLOURS,
    MARKERS,
    colour,
    legend,
    marker,
    new_figure,
    tidy,
)
from featcache.reporting.run_reader import Contents
from featcache.store.features import NO_VIEW, Features, Strings

FILE = "embedding.csv"
_NAMED_CLASSES = 20  # in the legend
_NAMES_UP_TO = 60
_COMPONENTS = 30


@dataclass(frozen=True, eq=False)
class Map:
    """Where some rows lie.

    Attributes
    ----------
    ids, labels : str arrays of shape (n,)
    xy : float array of shape (n, 2)
        Without unit: only who is near whom has a meaning.
    """

    ids: Strings
    labels: Strings
    xy: NDArray[np.float64]


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


def embed(features: Features, rows: int = 2000, steps: int = 750, seed: int = 0) -> Map:
    """Map the features of some rows: standardised, PCA to 30 columns, then t-SNE.

    L. van der Maaten, G. Hinton (2008), Visualizing Data using t-SNE, JMLR 9.

    Parameters
    ----------
    features : Features
    rows : int, default 2000
        Drawn at most, from the test rows where the data has a test split.
    steps : int, default 750
        Of t-SNE's optimisation; the first 250 only spread the points out.
    seed : int, default 0
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rng = np.random.default_rng(seed)
    itself = features.view == NO_VIEW
    pool = np.flatnonzero(itself & (features.split == "test"))
    pool = pool if len(pool) >= 50 else np.flatnonzero(itself)
    chosen = np.sort(rng.choice(pool, min(rows, len(pool)), replace=False))  # (n,)
    X = features.X[chosen].astype(np.float64)  # (n, d)
    scale = X.std(axis=0)
    X = (X - X.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    columns = min(_COMPONENTS, *X.shape)
    if not X.any():  # rows that are all equal: t-SNE divides by their spread, and crashes
        return Map(features.ids[chosen], features.y[chosen], np.zeros((len(X), 2)))
    X = PCA(columns, svd_solver="randomized", random_state=seed).fit_transform(X)  # (n, 30)
    if len(X) > 5 and columns > 2:
        near = min(30.0, (len(X) - 1) / 3)
        X = TSNE(2, perplexity=near, max_iter=steps, init="pca", random_state=seed).fit_transform(X)
    X = np.pad(X[:, :2], ((0, 0), (0, max(0, 2 - X.shape[1]))))
    return Map(features.ids[chosen], features.y[chosen], np.asarray(X, np.float64))


def write_map(folder: Path, found: Map) -> None:
    """Keep a map as embedding.csv: id, label, x, y."""
    file = io.StringIO()
    write = row_writer(file)
    write(("id", "label", "x", "y"))
    for id_, label, (x, y) in zip(
        found.ids.tolist(), found.labels.tolist(), found.xy.tolist(), strict=True
    ):
        write((id_, label, f"{x:.5g}", f"{y:.5g}"))
    write_text(folder / FILE, file.getvalue())


def read_map(folder: Path) -> Map | None:
    """The map in a run folder; None where there is none, or it can't be read."""
    try:
        with regular(folder / FILE).open(newline="", encoding="utf-8") as file:
            rows = [
                (read_cell(r["id"]), read_cell(r["label"]), float(r["x"]), float(r["y"]))
                for r in csv.DictReader(file)
            ]
        ids, labels, x, y = zip(*rows, strict=True)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return Map(np.array(ids), np.array(labels), np.array([x, y]).T)


def plot_map(found: Map | None, wrong: frozenset[str] = frozenset()) -> Figure | None:
    """Points in the colour and marker of their class; those in `wrong` are ringed."""
    if found is None:
        return None
    classes = sorted(set(found.labels.tolist()))
    figure = new_figure(6.6, 4.8)
    axes = figure.add_subplot()
    looks = len(COLOURS) * len(MARKERS)  # then they come again
    code = np.searchsorted(classes, found.labels) % looks  # (n,)
    for number, name in enumerate(classes[:looks]):
        x, y = found.xy[code == number].T
        axes.scatter(x, y, s=11, color=colour(number), marker=marker(number), alpha=0.75,
                     linewidths=0, rasterized=True,
                     label=name if number < _NAMED_CLASSES else None)  # fmt: skip
    missed = np.array([id_ in wrong for id_ in found.ids.tolist()])
    if missed.any():
        x, y = found.xy[missed].T
        axes.scatter(x, y, s=34, facecolors="none", edgecolors="black", linewidths=0.6,
                     rasterized=True, label="predicted wrong")  # fmt: skip
    tidy(axes, "t-SNE 1 (no unit)", "t-SNE 2 (no unit)", counted(len(found.ids), "image"))
    axes.set_xticks([])
    axes.set_yticks([])
    more = len(classes) - _NAMED_CLASSES
    title = f"class (and {more} more)" if more > 0 else "class"
    legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), title=title, markerscale=1.8)
    return figure


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
    # About equal weights, so that 0.47 is told from 0.53; never so narrow that noise looks large.
    equal = 1 / columns
    reach = max(0.05, float(np.nanmax(np.abs(found.mean - equal))))
    image = axes.imshow(
        found.mean, cmap="PuOr", aspect="auto", vmin=equal - reach, vmax=equal + reach
    )
    axes.set_xticks(range(columns), found.backbones, fontsize=8, parse_math=False,
                    rotation=30 if columns > 3 else 0)  # fmt: skip
    if rows <= _NAMES_UP_TO:
        axes.set_yticks(range(rows), found.classes, fontsize=8, parse_math=False)
    if rows <= 30:
        for i, j in np.ndindex(rows, columns):
            far = abs(found.mean[i, j] - equal) > 0.7 * reach
            axes.text(j, i, f"{found.mean[i, j]:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if far else "black")  # fmt: skip
    axes.set_xlabel("backbone")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, shrink=0.8).set_label(f"mean weight ({equal:.2f}: equal)")
    return figure
