"""Predictions: every tested row of a run as a line of predictions.csv, and the tests on them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.atomic import regular
from featcache.errors import DataError
from featcache.fitting.evaluate import Result
from featcache.fitting.significance import corrected_t_test, mcnemar
from featcache.fitting.splits import components
from featcache.reporting.refit_command import refit_remedy
from featcache.reporting.schema import read_folds
from featcache.store.features import Features


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Which rows a run got right, in the order of their ids.

    Attributes
    ----------
    ids : tuple of str
        Sorted, n of them.
    right : bool array of shape (n,)
    groups : tuple of str, or None
        Equal for linked rows; None where no rows are linked.
    """

    ids: tuple[str, ...]
    right: NDArray[np.bool_]
    groups: tuple[str, ...] | None


@dataclass(frozen=True)
class FoldScores:
    """How accurate a run was in each fold, and on how many images.

    Attributes
    ----------
    names : tuple of str
        Sorted, k of them.
    accuracy : tuple of float
        In the order of the names.
    train, test : float
        Images of a fold, as the mean over the folds. Views of an image add rows to train on, but
        nothing independent of it: they are not counted.
    """

    names: tuple[str, ...]
    accuracy: tuple[float, ...]
    train: float
    test: float


def write_predictions(path: Path, result: Result, features: Features) -> None:
    """Write the columns id, fold, true, pred, and p_<class> where there are probabilities.

    If rows are linked by group or content, a column `group` after `pred` numbers what belongs
    together: linked rows tend to be right or wrong together, so a paired test has to know.
    """
    groups = _groups(features)
    with_proba = result.folds[0].proba is not None
    header = ["id", "fold", "true", "pred"]
    header += [] if groups is None else ["group"]
    header += [f"p_{name}" for name in result.classes] if with_proba else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for fold in result.folds:
            proba = [[]] * len(fold.ids) if fold.proba is None else fold.proba.tolist()
            for id_, true, pred, row in zip(
                fold.ids.tolist(), fold.true.tolist(), fold.pred.tolist(), proba, strict=True
            ):
                group = [] if groups is None else [groups[id_]]
                writer.writerow([id_, fold.name, true, pred, *group, *(f"{p:.6g}" for p in row)])


def read_outcomes(path: Path) -> Outcomes:
    """Read which rows were predicted right, whatever their order in the file.

    Raises
    ------
    DataError
        If the file is missing or is no whole table of predictions.
    """
    try:
        with regular(path).open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            id_, true, pred = (header.index(name) for name in ("id", "true", "pred"))
            group = header.index("group") if "group" in header else None
            rows = sorted(
                (row[id_], row[true] == row[pred], "" if group is None else row[group])
                for row in lines
            )
        ids, right, groups = zip(*rows, strict=True)
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DataError(
            f"{path} can't be read as predictions: {type(error).__name__} {error}",
            refit_remedy(path.parent),
        ) from None
    return Outcomes(ids, np.array(right), None if group is None else groups)


def read_tested(folder: Path) -> Outcomes | FoldScores | None:
    """What a run folder has for a paired test; None where that is missing or unreadable.

    The rows themselves if there is one fold, else the accuracies of the folds.
    """
    try:
        folds = sorted(read_folds(folder), key=lambda fold: str(fold["name"]))
        if len(folds) == 1:
            return read_outcomes(folder / "predictions.csv")
        return FoldScores(
            names=tuple(fold["name"] for fold in folds),
            accuracy=tuple(float(fold["metrics"]["accuracy"]) for fold in folds),
            train=sum(fold.get("train_images", fold["train"]) for fold in folds) / len(folds),
            test=sum(fold["test"] for fold in folds) / len(folds),
        )
    except (DataError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def p_value(one: Outcomes | FoldScores | None, other: Outcomes | FoldScores | None) -> float | None:
    """Of the paired test between two runs; None if they were not tested on the same.

    McNemar's test if there is one fold, else the corrected t-test over the folds' accuracies.
    """
    if isinstance(one, Outcomes) and isinstance(other, Outcomes) and one.ids == other.ids:
        return mcnemar(one.right, other.right, one.groups or other.groups)
    if isinstance(one, FoldScores) and isinstance(other, FoldScores) and one.names == other.names:
        return corrected_t_test(one.accuracy, other.accuracy, one.train, one.test)
    return None


def _groups(features: Features) -> dict[str, int] | None:
    """A number for each image id, shared by linked images; None where there are none."""
    numbers = components(features).tolist()
    if len(set(numbers)) == len(numbers):
        return None
    return dict(zip(features.ids.tolist(), numbers, strict=True))
