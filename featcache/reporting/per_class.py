"""Per class: precision, recall and F1 of every class, of one run or of two side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.metrics import precision_recall_fscore_support

from featcache.reporting.contents import Contents
from featcache.reporting.files import write_text
from featcache.reporting.run_folder import Run

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
