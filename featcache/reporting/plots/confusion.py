"""Confusion of classes; precision, recall and F1 of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from featcache.reporting.html import write_text
from featcache.reporting.plots.style import new_figure
from featcache.reporting.run_reader import Contents
from featcache.reporting.schema import Run

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


FILE = "per_class.csv"


@dataclass(frozen=True)
class ClassScore:
    """One class, over all test rows together.

    Attributes
    ----------
    name : str
    precision, recall, f1 : float
        0 where nothing was predicted.
    images : int
        Test rows of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Duel:
    """A class in two runs on the same rows."""

    name: str
    images: int
    recall: tuple[float, float]
    f1: tuple[float, float]

    @property
    def gain(self) -> float:
        """F1 of the first less that of the second."""
        return self.f1[0] - self.f1[1]


def class_scores(contents: Contents) -> list[ClassScore]:
    """Scores of every class, in the order of the run's classes."""
    if not len(contents.true):
        return []
    columns = precision_recall_fscore_support(
        contents.true, contents.pred, labels=contents.classes, zero_division=0
    )
    return [
        ClassScore(name, float(precision), float(recall), float(f1), int(images))
        for name, precision, recall, f1, images in zip(contents.classes, *columns, strict=True)
    ]


def write_class_scores(folder: Path, scores: Sequence[ClassScore]) -> None:
    """Write per_class.csv: class, precision, recall, f1, images."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("class", "precision", "recall", "f1", "images"))
    for one in scores:
        numbers = (f"{value:.6f}" for value in (one.precision, one.recall, one.f1))
        writer.writerow((one.name, *numbers, one.images))
    write_text(folder / FILE, file.getvalue())


def rivals(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """The best run with several backbones and the best with one; None where one kind is absent.

    Parameters
    ----------
    runs : sequence of Run
        With the same rows, best first.
    """
    fused = next((run for run in runs if len(run.backbones) > 1), None)
    single = next((run for run in runs if len(run.backbones) == 1), None)
    return None if fused is None or single is None else (fused, single)


def duel(first: Contents, second: Contents) -> list[Duel]:
    """Class by class, what gains most first; only classes that both runs know."""
    other = {score.name: score for score in class_scores(second)}
    both = [(score, other[score.name]) for score in class_scores(first) if score.name in other]
    duels = [Duel(a.name, a.images, (a.recall, b.recall), (a.f1, b.f1)) for a, b in both]
    return sorted(duels, key=lambda one: -one.gain)
