"""Predictions: every tested row of a run as a line of predictions.csv; runs paired by them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.atomic import regular
from featcache.csv_cells import read_cell
from featcache.errors import CacheRefused, DataError
from featcache.fitting.evaluate import Result
from featcache.fitting.fold import MANY_PROBABILITIES
from featcache.fitting.metrics import (
    ACCURACY,
    Metric,
    fold_weights,
    interval,
    luck_of_seeds,
    most_rows,
    refit_inflation,
    scores_in_folds,
    seed_variance,
)
from featcache.fitting.significance import Differences, Winner, compare_all, fold_inflation, winner
from featcache.fitting.splits import components, unseeded
from featcache.images.manifest import write_csv
from featcache.reporting.refit_command import refit_remedy
from featcache.reporting.schema import read_folds, read_run
from featcache.store.feature_file import plain_dataset, span
from featcache.store.features import Features, Strings
from featcache.store.seal import check_seal, seal

PROBABILITIES = "probabilities.h5"  # beside predictions.csv, if they are many


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a run's tests score by a metric, in the order of their folds and ids.

    Attributes
    ----------
    ids, fold : str arrays of shape (n,)
        With repeated folds an image is tested several times.
    score : float array of shape (n,)
        See `metrics.row_scores`; NaN in a fold in which the metric is not defined.
    groups : str array of shape (n,), or None
        Equal for linked rows; None where no rows are linked.
    metric : Metric
    most_rows : float
        See `metrics.most_rows`.
    seeds : int
        A test's score is its mean over so many.
    luck : float
        See `metrics.luck_of_seeds`.
    """

    ids: Strings
    fold: Strings
    score: NDArray[np.float64]
    groups: Strings | None
    metric: Metric = ACCURACY
    most_rows: float = math.inf
    seeds: int = 1
    luck: float = 0.0

    def pairs_with(self, other: Outcomes) -> bool:
        """Whether both were tested on the same images in the same folds."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.fold, other.fold)

    def interval(self, design: tuple[int, float, float]) -> tuple[float, float]:
        """95 % interval of the metric's mean over the folds; see `read_design`."""
        known = ~np.isnan(self.score)
        if not known.any():
            return float("nan"), float("nan")
        units = self.ids if self.groups is None else self.groups
        return interval(
            self.score[known], units[known], fold_weights(self.fold[known]),
            most_rows=self.most_rows, inflation=refit_inflation(*design), upper=self.metric.upper,
            extra=seed_variance(self.luck, self.seeds, self.seeds - 1),
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """The metric's mean over the folds in which it is defined; NaN if in none."""
        known = ~np.isnan(self.score)
        if not known.any():
            return float("nan")
        return float(fold_weights(self.fold[known]) @ self.score[known])


@dataclass(frozen=True, eq=False)
class Paired:
    """The outcomes of several runs, test by test.

    Attributes
    ----------
    scores : float array of shape (n, runs)
        Of the tests of folds in which the metric is defined.
    units : str array of shape (n,)
        Equal for tests of one image, or of linked ones.
    weights : float array of shape (n,)
        With which a mean is that over the folds.
    folds : int
        Of one repeat.
    train, test : float
        Images of a fold, as the mean over the folds. Views of an image add rows to train on, but
        nothing independent of it: they are not counted.
    metric : Metric
    most_rows : float
        See `metrics.most_rows`.
    extra : float array of shape (runs,)
        See `metrics.seed_variance`; 0 for runs with one seed.
    """

    scores: NDArray[np.float64]
    units: Strings
    weights: NDArray[np.float64]
    folds: int
    train: float
    test: float
    metric: Metric
    most_rows: float
    extra: NDArray[np.float64]

    def compare(self, pairs: Sequence[tuple[int, int]] | None = None) -> Differences:
        """All pairs, or some; see `compare_all`."""
        inflation = fold_inflation(self.folds, self.train, self.test)
        return compare_all(
            self.scores, self.units, weights=self.weights, pairs=pairs, inflation=inflation,
            extra=self.extra,
        )  # fmt: skip

    def winner(self) -> Winner:
        """What the best of them is worth; see `winner`."""
        inflation = refit_inflation(self.folds, self.train, self.test)
        return winner(
            self.scores, self.units, weights=self.weights, inflation=inflation,
            metric=self.metric, most_rows=self.most_rows, extra=self.extra,
        )  # fmt: skip


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


def read_outcomes(path: Path, metric: Metric = ACCURACY) -> Outcomes:
    """Read what the tests score by a metric, whatever their order in the file.

    Raises
    ------
    DataError
        If the file is missing, is no whole table of predictions, or has no rows.
    """
    text = ("id", "fold", "true", "pred", "group")
    table = read_predictions(path, None if metric.proba else text)
    if not len(table) or table.isna().to_numpy().any() or (table["pred"] == "").any():
        raise DataError(f"{path} is no whole table of predictions", refit_remedy(path.parent))
    table = table.sort_values(["fold", "id"])
    order = table.index.to_numpy()  # of its rows in the file
    true, pred, fold = (table[name].to_numpy(np.str_) for name in ("true", "pred", "fold"))
    columns = [name for name in table.columns if name.startswith("p_")]
    classes = [name.removeprefix("p_") for name in columns] or np.union1d(true, pred).tolist()
    try:
        proba = _to_the_last_digit(table[columns].to_numpy(np.float64)) if columns else None
        if metric.proba and not columns:  # there may be too many for the table
            known = list(read_run(path.parent).classes)
            many = read_probabilities(path.parent, known)
            if many is not None:
                classes, proba = known, _to_the_last_digit(many[order].astype(np.float64))
        positive = read_positive(path.parent) if metric.name == "f1_positive" else ""
        score = scores_in_folds(metric.name, true, pred, proba, classes, fold, positive)
    except (ValueError, IndexError) as error:  # no number, or a label that is no class
        raise DataError(f"{path}: {error}", refit_remedy(path.parent)) from None
    found = Outcomes(
        ids=table["id"].to_numpy(np.str_),
        fold=fold,
        score=score,
        groups=table["group"].to_numpy(np.str_) if "group" in table else None,
        metric=metric,
        most_rows=most_rows(metric.name, true, positive),
    )
    return _over_seeds(found, path)


def _over_seeds(found: Outcomes, path: Path) -> Outcomes:
    """Each test's mean over the seeds that it was fitted with."""
    names, fold = np.unique(found.fold, return_inverse=True)
    plain = np.array([unseeded(name) for name in names.tolist()])[fold]  # (n,)
    seeds = len(names) // max(len(np.unique(plain)), 1)
    if seeds < 2:
        return found
    order = np.lexsort((found.fold, found.ids, plain))
    table = order.reshape(-1, seeds).T if len(order) % seeds == 0 else order[None]
    first = table[0]
    same = (found.ids[table] == found.ids[first]) & (plain[table] == plain[first])
    if len(table) < seeds or not same.all():
        raise DataError(f"{path} lacks tests of some seeds", refit_remedy(path.parent))
    groups = None if found.groups is None else found.groups[first]
    scores = found.score[table]  # (seeds, tests)
    known = ~np.isnan(scores).any(axis=0)
    units = (found.ids[first] if groups is None else groups)[known]
    luck = 0.0
    if known.any():
        luck = luck_of_seeds(scores[:, known], units, fold_weights(plain[first][known]))
    return replace(
        found, ids=found.ids[first], fold=plain[first], score=scores.mean(axis=0), groups=groups,
        most_rows=found.most_rows / seeds, seeds=seeds, luck=luck,
    )  # fmt: skip


def _to_the_last_digit(proba: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (n, classes) with the largest of each row as 1 less the others: with the six
    digits that it is written in, many that are nearly 1 would be equal.
    """
    largest = (np.arange(len(proba)), proba.argmax(axis=1))
    whole = np.abs(proba.sum(axis=1) - 1) < 1e-4
    others = proba.sum(axis=1) - proba[largest]
    exact = proba.copy()
    exact[largest] = np.where(whole, 1 - others, proba[largest])
    return exact


def pair_outcomes(
    folders: Sequence[Path],
    metric: Metric = ACCURACY,
    known: Mapping[Path, Outcomes | None] | None = None,
) -> tuple[Paired, list[int]] | None:
    """What the runs in these folders score, and the places of those that have it on record.

    Parameters
    ----------
    folders : sequence of Path
        Only runs that were tested as the first one was are taken.
    metric : Metric
    known : mapping of Path to Outcomes or None, optional
        What was read before, by folder.

    Returns
    -------
    (Paired, list of int) or None
        None if the first one's predictions or folds are missing or unreadable, or the metric is
        not defined for it.
    """
    found = [try_outcomes(folder, metric) if known is None else known[folder] for folder in folders]
    first, design = found[0], read_design(folders[0])
    if first is None or design is None:
        return None
    defined = ~np.isnan(first.score)  # (n,)
    if not defined.any():
        return None
    alike = [
        (place, one)
        for place, one in enumerate(found)
        if one is not None
        and one.pairs_with(first)
        and np.array_equal(np.isnan(one.score), ~defined)
    ]
    groups = next((one.groups for _, one in alike if one.groups is not None), first.ids)
    scores = np.stack([one.score for _, one in alike], axis=1)[defined]
    weights = fold_weights(first.fold[defined])
    extra = _extra([one for _, one in alike])
    paired = Paired(scores, groups[defined], weights, *design, metric, first.most_rows, extra)
    return paired, [place for place, _ in alike]


def _extra(found: Sequence[Outcomes]) -> NDArray[np.float64]:
    """What the luck of seeds adds to each one's variance: its own, and at least that of all."""
    drawn = [one for one in found if one.seeds > 1]
    freedom = sum(one.seeds - 1 for one in drawn)
    common = sum((one.seeds - 1) * one.luck for one in drawn) / max(freedom, 1)
    pairs = max(len(found) * (len(found) - 1) // 2, 1)
    return np.array([
        seed_variance(max(one.luck, common), one.seeds, max(freedom, 1), pairs) for one in found
    ])  # fmt: skip


def try_outcomes(folder: Path, metric: Metric = ACCURACY) -> Outcomes | None:
    """`read_outcomes` of a run folder; None if that can't be."""
    try:
        return read_outcomes(folder / "predictions.csv", metric)
    except DataError:
        return None


def read_positive(folder: Path) -> str:
    """The positive one of a run's two classes; "" if there is none, or run.json does not say."""
    try:
        return read_run(folder).positive
    except DataError:
        return ""


def read_design(folder: Path) -> tuple[int, float, float] | None:
    """Folds of one repeat, and the images of a fold that train and that are tested.

    None if metrics.json does not say.
    """
    folds = read_folds(folder)
    try:
        train = sum(fold.get("train_images", fold["train"]) for fold in folds) / len(folds)
        test = sum(fold["test"] for fold in folds) / len(folds)
        names = {unseeded(fold["name"]) for fold in folds}
        repeats = len({name.partition(".")[0] for name in names if "." in name})
        return len(names) // max(repeats, 1), train, test
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _groups(features: Features) -> dict[str, int] | None:
    """A number for each image id, shared by linked images; None where there are none."""
    numbers = components(features).tolist()
    if len(set(numbers)) == len(numbers):
        return None
    return dict(zip(features.ids.tolist(), numbers, strict=True))
