"""Run reader: the run folder that a name means, and all that it holds, as far as it can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, UnknownName, counted, did_you_mean
from featcache.reporting.predictions import (
    PROBABILITIES,
    read_predictions,
    read_probabilities,
)
from featcache.reporting.refit_command import refit_remedy, with_reports
from featcache.reporting.schema import Run, read_folds, read_json, read_run
from featcache.store.features import Strings
from featcache.store.weights_folder import file_stem

_FACTS = ("id", "fold", "true", "pred", "group")


@dataclass(frozen=True, eq=False)
class Contents:
    """A run folder as its page shows it.

    Attributes
    ----------
    run : Run
    folds : list of dict
        Of metrics.json: name, train, test, metrics, fit_seconds, predict_seconds, history.
    classes : list of str
    ids, fold, true, pred : str arrays of shape (n,)
        predictions.csv.
    proba : float array of shape (n, classes), or None
        Of predictions.csv, or float32 of probabilities.h5.
    attention : list of dict
        `{"classes": […], "backbones": […], "mean": [[…]]}` for each fold; empty if the fusion
        learns no weights.
    leaks : list of str
        The findings in leaks.json, a line each.
    groups : str array of shape (n,), or None
        Of predictions.csv: equal for linked rows.
    """

    run: Run
    folds: list[dict[str, Any]]
    classes: list[str]
    ids: Strings
    fold: Strings
    true: Strings
    pred: Strings
    proba: NDArray[np.float64] | NDArray[np.float32] | None
    attention: list[dict[str, Any]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    groups: Strings | None = None

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which rows were predicted right, shape (n,)."""
        right: NDArray[np.bool_] = self.true == self.pred
        return right

    @property
    def confidence(self) -> NDArray[np.float64] | None:
        """The probability given to the predicted label, shape (n,); None without any."""
        if self.proba is None:
            return None
        column = {name: place for place, name in enumerate(self.classes)}
        places = np.array([column.get(label, 0) for label in self.pred.tolist()], np.intp)
        return np.asarray(self.proba[np.arange(len(places)), places], np.float64)


def read_contents(folder: Path, probabilities: bool = True) -> Contents:
    """Read a run folder, perhaps without probabilities.

    Raises
    ------
    DataError
        If it is none, or holds something that no run writes.
    """
    run = read_run(folder)
    folds = read_folds(folder)
    table = read_predictions(folder / "predictions.csv", None if probabilities else _FACTS)
    used = {*table["true"], *table["pred"]}
    classes = list(run.classes) or sorted(used)
    if odd := used - set(classes):
        raise DataError(f"{folder}/predictions.csv has labels that are no classes of the run: "
                        f"{', '.join(sorted(odd)[:3])}", refit_remedy(folder))  # fmt: skip
    columns = [f"p_{name}" for name in classes]
    proba: NDArray[np.float64] | NDArray[np.float32] | None = None
    if set(columns) <= set(table.columns):
        try:
            proba = table[columns].to_numpy(np.float64)
        except ValueError as error:
            raise DataError(f"{folder}/predictions.csv: {error}", refit_remedy(folder)) from None
    elif probabilities:
        proba = read_probabilities(folder, classes)
        if proba is not None and len(proba) != len(table):
            raise DataError(f"{folder}/{PROBABILITIES} has {counted(len(proba), 'row')}, "
                            f"predictions.csv {len(table):,}", refit_remedy(folder))  # fmt: skip
    ids, fold, true, pred = (
        table[name].to_numpy(np.str_) if len(table) else np.zeros(0, np.str_)
        for name in ("id", "fold", "true", "pred")
    )
    return Contents(
        run=run, folds=folds, classes=classes, ids=ids, fold=fold, true=true,
        pred=pred, proba=proba, attention=_attention(folds),
        leaks=read_leaks(folder),
        groups=table["group"].to_numpy(np.str_) if "group" in table and len(table) else None,
    )  # fmt: skip


def read_leaks(folder: Path) -> list[str]:
    """The findings in leaks.json, a line each; none if the file is not there or damaged."""
    leaks = read_json(folder / "leaks.json").get("leaks")
    leaks = leaks if isinstance(leaks, list) else []
    return [str(leak["what"]) for leak in leaks if isinstance(leak, dict) and "what" in leak]


def _attention(folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is whole of the weights that a fusion learned."""
    found = [fold.get("attention") for fold in folds]
    return [one for one in found if isinstance(one, dict) and _is_whole(one)]


def _is_whole(attention: dict[str, Any]) -> bool:
    try:
        mean = np.asarray(attention["mean"], np.float64)
        return mean.shape == (len(attention["classes"]), len(attention["backbones"]))
    except (KeyError, TypeError, ValueError):
        return False


def find_run(name: str, reports: str | Path = "reports") -> Path:
    """The run folder below `reports` that has this name, or the only one that begins so.

    Parameters
    ----------
    name : str
        Perhaps with the data set's name before it, as in "photos/resnet18.concat.mlp". Several
        backbones may stand in any order.
    reports : str or Path, default "reports"

    Raises
    ------
    UnknownName
        If the name means no run, or several.
    """
    folder = Path(reports)
    runs = sorted(path.parent for path in folder.glob("*/*/run.json"))
    wanted = name.removeprefix(f"{folder.as_posix()}/").rstrip("/")
    found = _meant(wanted, {run: run.name for run in runs}) or _meant_in_any_order(wanted, runs)
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownName(
            f"{name!r} is the beginning of {len(found)} runs",
            "One of:\n" + "\n".join(str(path) for path in found[:10]),
        )
    first = f"Fit one first: {with_reports(['featcache', 'fit'], folder)}"
    near = did_you_mean(name, [run.name for run in runs])
    raise UnknownName(f"no run {name!r} in {reports}/", near if runs else first)


def _meant(wanted: str, names: dict[Path, str]) -> list[Path]:
    """The runs of this name, else those whose name begins so."""
    plain, one_word = wanted.replace(":", "."), file_stem(wanted)  # as `folder_name` does
    both = {run: (name, f"{run.parent.name}/{name}") for run, name in names.items()}
    whole = [run for run, spelt in both.items() if plain in spelt or one_word in spelt]
    return whole or [
        run
        for run, spelt in both.items()
        if any(one.startswith((plain, one_word)) for one in spelt)
    ]


def _meant_in_any_order(wanted: str, runs: list[Path]) -> list[Path]:
    """The same where the backbones are named in another order than the run's."""
    data, slash, short = wanted.rpartition("/")
    reordered = {run: f"{data}{slash}{_reordered(short, _backbones(run))}" for run in runs}
    return [
        run for run, text in reordered.items() if text != wanted and _meant(text, {run: run.name})
    ]


def _reordered(name: str, backbones: list[str]) -> str:
    """A run's name, or its beginning, with these backbones as they stand here, if it has them."""
    *first, last = name.replace(":", ".").split("+")
    left = [one for one in backbones if one not in first]
    if len(left) != 1 or len(first) + 1 != len(backbones) or not last.startswith(left[0]):
        return name
    return "+".join(backbones) + last.removeprefix(left[0])


def _backbones(run: Path) -> list[str]:
    names = read_json(run / "run.json").get("backbones")
    return [file_stem(str(name)) for name in names] if isinstance(names, list) else []
