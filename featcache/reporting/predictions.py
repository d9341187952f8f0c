"""Predictions: every tested row of a run as a line of predictions.csv; runs paired by them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.atomic import regular
from featcache.errors import CacheRefused, DataError
from featcache.fitting.evaluate import Result
from featcache.fitting.fold import MANY_PROBABILITIES
from featcache.fitting.metrics import fold_weights, refit_inflation
from featcache.fitting.significance import Differences, Winner, compare_all, fold_inflation, winner
from featcache.fitting.splits import components
from featcache.images.manifest import write_csv
from featcache.reporting.refit_command import refit_remedy
from featcache.reporting.schema import read_folds
from featcache.store.feature_file import plain_dataset, span
from featcache.store.features import Features, Strings
from featcache.store.seal import check_seal, seal
from featcache.tables import read_cell

PROBABILITIES = "probabilities.h5"  # beside predictions.csv, if they are many


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Which tests a run got right, in the order of their folds and ids.

    Attributes
    ----------
    ids, fold : str arrays of shape (n,)
        With repeated folds an image is tested several times.
    right : bool array of shape (n,)
    groups : str array of shape (n,), or None
        Equal for linked rows; None where no rows are linked.
    """

    ids: Strings
    fold: Strings
    right: NDArray[np.bool_]
    groups: Strings | None

    def pairs_with(self, other: Outcomes) -> bool:
        """Whether both were tested on the same images in the same folds."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.fold, other.fold)


@dataclass(frozen=True, eq=False)
class Paired:
    """The outcomes of several runs, test by test.

    Attributes
    ----------
    right : float array of shape (n, runs)
    units : str array of shape (n,)
        Equal for tests of one image, or of linked ones.
    weights : float array of shape (n,)
        With which a mean is that over the folds.
    folds : int
        Of one repeat.
    train, test : float
        Images of a fold, as the mean over the folds. Views of an image add rows to train on, but
        nothing independent of it: they are not counted.
    """

    right: NDArray[np.float64]
    units: Strings
    weights: NDArray[np.float64]
    folds: int
    train: float
    test: float

    def compare(self, pairs: Sequence[tuple[int, int]] | None = None) -> Differences:
        """All pairs, or some; see `compare_all`."""
        inflation = fold_inflation(self.folds, self.train, self.test)
        return compare_all(
            self.right, self.units, weights=self.weights, pairs=pairs, inflation=inflation
        )

    def winner(self) -> Winner:
        """What the best of them is worth; see `winner`."""
        inflation = refit_inflation(self.folds, self.train, self.test)
        return winner(self.right, self.units, weights=self.weights, inflation=inflation)


def write_predictions(path: Path, result: Result, features: Features) -> None:
    """Write the columns id, fold, true, pred, and p_<class> where there are probabilities.

    If rows are linked by group or content, a column `group` after `pred` numbers what belongs
    together: linked rows tend to be right or wrong together, so a paired test has to know.

    More than two million probabilities go into probabilities.h5 beside the table, in float32.
    """
    groups = _groups(features)
    in_table = _in_table(result)
    header = ["id", "fold", "true", "pred"]
    header += [] if groups is None else ["group"]
    header += [f"p_{name}" for name in result.classes] if in_table else []
    write_csv(path, header, _Rows(result, groups, in_table))
    if result.folds[0].proba is not None and not in_table:
        _write_probabilities(path.with_name(PROBABILITIES), result)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The lines of predictions.csv, made anew whenever they are gone through."""

    result: Result
    groups: dict[str, int] | None
    in_table: bool

    def __iter__(self) -> Iterator[list[Any]]:
        for fold in self.result.folds:
            texts = (fold.ids.tolist(), fold.true.tolist(), fold.pred.tolist())
            for row, (id_, true, pred) in enumerate(zip(*texts, strict=True)):
                group = [] if self.groups is None else [self.groups[id_]]
                proba = fold.proba[row].tolist() if self.in_table and fold.proba is not None else ()
                yield [id_, fold.name, true, pred, *group, *(f"{p:.6g}" for p in proba)]


def _in_table(result: Result) -> bool:
    """Whether predictions.csv holds the probabilities."""
    rows = sum(len(fold.ids) for fold in result.folds)
    return result.folds[0].proba is not None and rows * len(result.classes) <= MANY_PROBABILITIES


def _write_probabilities(path: Path, result: Result) -> None:
    """Write `proba`, float32 (n, classes), in the order of the table's rows; and `classes`."""
    rows = sum(len(fold.ids) for fold in result.folds)
    names = json.dumps(result.classes).encode()
    with h5py.File(path, "w") as file:
        proba = file.create_dataset("proba", (rows, len(result.classes)), "float32")
        start = 0
        for fold in result.folds:
            proba[start : start + len(fold.ids)] = fold.proba
            start += len(fold.ids)
        file.create_dataset("classes", data=np.frombuffer(names, np.uint8))
        between = span(proba)
    seal(path, [*between] * 4)  # only HDF5's own bytes


def read_probabilities(folder: Path, classes: Sequence[str]) -> NDArray[np.float32] | None:
    """The probabilities of probabilities.h5, shape (n, classes); None if it isn't there.

    Raises
    ------
    DataError
        If it is damaged, or of other classes.
    """
    path = folder / PROBABILITIES
    if not path.exists() and not path.is_symlink():
        return None
    try:
        check_seal(regular(path), remove=False, needed=True)
        with h5py.File(path, "r", locking=False) as file:
            proba, names = (plain_dataset(path, file, name) for name in ("proba", "classes"))
            if (proba.ndim, proba.dtype, names.dtype) != (2, np.float32, np.uint8):
                raise ValueError("its datasets are of another shape or type")
            if span(proba)[1] > path.stat().st_size:
                raise ValueError("it is not all there")
            if json.loads(names[...].tobytes()) != list(classes):
                raise ValueError("its classes are not those of the run")
            return np.asarray(proba[...])
    except CacheRefused as error:
        raise DataError(error.problem, refit_remedy(folder)) from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}", refit_remedy(folder)) from None


def read_predictions(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read predictions.csv: id, fold, true, pred and perhaps group as text, p_<class> as numbers.

    Parameters
    ----------
    path : Path
    columns : sequence of str, optional
        Only these, if they are there.

    Raises
    ------
    DataError
        If the file is missing or is no whole table of predictions.
    """
    text = dict.fromkeys(("id", "fold", "true", "pred", "group"), str)
    wanted = None if columns is None else lambda name: name in columns
    try:
        table = pd.read_csv(
            regular(path), dtype=text, keep_default_na=False, na_values={}, usecols=wanted
        )
        missing = {"id", "fold", "true", "pred"} - set(table.columns)
        for name in {"id", "true", "pred"} & set(table.columns):
            table[name] = [read_cell(text) for text in table[name]]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as predictions: {error}", refit_remedy(path.parent)
        ) from None
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(sorted(missing))}", refit_remedy(path.parent)
        )
    return table


def read_outcomes(path: Path) -> Outcomes:
    """Read which tests were predicted right, whatever their order in the file.

    Raises
    ------
    DataError
        If the file is missing, is no whole table of predictions, or has no rows.
    """
    table = read_predictions(path, ("id", "fold", "true", "pred", "group"))
    if not len(table) or table.isna().to_numpy().any() or (table["pred"] == "").any():
        raise DataError(f"{path} is no whole table of predictions", refit_remedy(path.parent))
    table = table.sort_values(["fold", "id"], ignore_index=True)
    return Outcomes(
        ids=table["id"].to_numpy(np.str_),
        fold=table["fold"].to_numpy(np.str_),
        right=(table["true"] == table["pred"]).to_numpy(np.bool_),
        groups=table["group"].to_numpy(np.str_) if "group" in table else None,
    )


def pair_outcomes(folders: Sequence[Path]) -> tuple[Paired, list[int]] | None:
    """What the runs in these folders had right, and the places of those that have it on record.

    Parameters
    ----------
    folders : sequence of Path
        Only runs that were tested as the first one was are taken.

    Returns
    -------
    (Paired, list of int) or None
        None if the first one's predictions or folds are missing or unreadable.
    """
    found = [_try_outcomes(folder) for folder in folders]
    first, design = found[0], read_design(folders[0])
    if first is None or design is None:
        return None
    alike = [
        (place, one) for place, one in enumerate(found) if one is not None and one.pairs_with(first)
    ]
    groups = next((one.groups for _, one in alike if one.groups is not None), first.ids)
    right = np.stack([one.right for _, one in alike], axis=1).astype(float)
    return Paired(right, groups, fold_weights(first.fold), *design), [place for place, _ in alike]


def _try_outcomes(folder: Path) -> Outcomes | None:
    try:
        return read_outcomes(folder / "predictions.csv")
    except DataError:
        return None


def read_design(folder: Path) -> tuple[int, float, float] | None:
    """Folds of one repeat, and the images of a fold that train and that are tested.

    None if metrics.json does not say.
    """
    folds = read_folds(folder)
    try:
        train = sum(fold.get("train_images", fold["train"]) for fold in folds) / len(folds)
        test = sum(fold["test"] for fold in folds) / len(folds)
        repeats = len(
            {str(fold["name"]).partition(".")[0] for fold in folds if "." in fold["name"]}
        )
        return len(folds) // max(repeats, 1), train, test
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _groups(features: Features) -> dict[str, int] | None:
    """A number for each image id, shared by linked images; None where there are none."""
    numbers = components(features).tolist()
    if len(set(numbers)) == len(numbers):
        return None
    return dict(zip(features.ids.tolist(), numbers, strict=True))
