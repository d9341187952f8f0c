"""Confusion of classes; precision, recall and F1 of each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from featcache.csv_cells import row_writer
from featcache.fitting.metrics import MANY_CLASSES
from featcache.reporting.html import write_text
from featcache.reporting.plots.style import new_figure
from featcache.reporting.run_reader import Contents
from featcache.reporting.schema import Run

_NUMBERS_UP_TO = 20  # classes: beyond it a cell has no room for text
_NAMES_UP_TO = 60
_SHOWN = 100  # of more than MANY_CLASSES


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of the classes that are shown.

    Attributes
    ----------
    classes : list of str
        All of the run; of more than 200 the 100 with the most mistakes, in the run's order.
    counts : int array of shape (classes, classes)
        A row for each true class.
    images : int array of shape (classes,)
        Test rows of each true class, those taken for a class that isn't shown too.
    """

    classes: list[str]
    counts: NDArray[np.int64]
    images: NDArray[np.int64]

    @property
    def rates(self) -> NDArray[np.float64]:
        """The shares of each true class; 0 in one without images."""
        shares: NDArray[np.float64] = self.counts / np.maximum(self.images, 1)[:, None]
        return shares


def confusion(contents: Contents) -> Confusion:
    """Of many classes only those with the most mistakes, as the true class or as the predicted."""
    true, pred, names = *_codes(contents), contents.classes
    images = np.bincount(true, minlength=len(names))
    shown = np.arange(len(names))
    if len(names) > MANY_CLASSES:
        wrong = true != pred
        mistakes = sum(np.bincount(code[wrong], minlength=len(names)) for code in (true, pred))
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:_SHOWN])
    place = np.full(len(names), -1)
    place[shown] = np.arange(len(shown))
    both = (place[true] >= 0) & (place[pred] >= 0)
    counts = np.zeros((len(shown), len(shown)), np.int64)
    np.add.at(counts, (place[true[both]], place[pred[both]]), 1)
    return Confusion([names[i] for i in shown], counts, images[shown])


def _codes(contents: Contents) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places among the classes of each row's true and predicted label."""
    place = {name: number for number, name in enumerate(contents.classes)}
    true, pred = (
        np.array([place[label] for label in labels.tolist()], np.intp)
        for labels in (contents.true, contents.pred)
    )
    return true, pred


def worst_pairs(contents: Contents, most: int = 8) -> list[tuple[str, str, int, float]]:
    """True class, predicted class, count and share of the true class; the most frequent first."""
    true, pred = _codes(contents)
    classes, images = contents.classes, np.bincount(true, minlength=len(contents.classes))
    wrong = true != pred
    pairs, counts = np.unique(true[wrong] * len(classes) + pred[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    places = [(*divmod(int(pairs[k]), len(classes)), int(counts[k])) for k in order]
    return [(classes[i], classes[j], count, float(count / images[i])) for i, j, count in places]


def plot_confusion(contents: Contents) -> Figure | None:
    """Shade by the share of the true class; in each cell that share in per cent, and the count."""
    found = confusion(contents)
    counts, names, share = found.counts, found.classes, found.rates
    if not counts.sum():
        return None
    n = len(names)
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
    true, pred = _codes(contents)
    columns = precision_recall_fscore_support(
        true, pred, labels=np.arange(len(contents.classes)), zero_division=0
    )
    return [
        ClassScore(name, float(precision), float(recall), float(f1), int(images))
        for name, precision, recall, f1, images in zip(contents.classes, *columns, strict=True)
    ]


def write_class_scores(folder: Path, scores: Sequence[ClassScore]) -> None:
    """Write per_class.csv: class, precision, recall, f1, images."""
    file = io.StringIO()
    write = row_writer(file)
    write(("class", "precision", "recall", "f1", "images"))
    for one in scores:
        numbers = (f"{value:.6f}" for value in (one.precision, one.recall, one.f1))
        write((one.name, *numbers, one.images))
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
