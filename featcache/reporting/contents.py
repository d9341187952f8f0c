"""Contents: all that a run folder holds, as far as it can be read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.errors import DataError
from featcache.reporting.redo import refit_remedy
from featcache.reporting.run_folder import Run, read_run
from featcache.store.features import Strings


@dataclass(frozen=True, eq=False)
class Contents:
    """A run folder as its page shows it.

    Attributes
    ----------
    run : Run
    facts : dict
        run.json; later versions write more into it, so that every use asks with `.get`.
    folds : list of dict
        Of metrics.json: name, train, test, metrics, fit_seconds, predict_seconds, history.
    classes : list of str
    ids, fold, true, pred : str arrays of shape (n,)
        predictions.csv.
    proba : float array of shape (n, classes), or None
    attention : list of dict
        `{"classes": […], "backbones": […], "mean": [[…]]}` for each fold, or one for all; empty
        where the fusion learns no weights.
    leaks : list of dict
        leaks.json, as plain findings.
    """

    run: Run
    facts: dict[str, Any]
    folds: list[dict[str, Any]]
    classes: list[str]
    ids: Strings
    fold: Strings
    true: Strings
    pred: Strings
    proba: NDArray[np.float64] | None
    attention: list[dict[str, Any]] = field(default_factory=list)
    leaks: list[dict[str, Any]] = field(default_factory=list)

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
        confidence: NDArray[np.float64] = self.proba[np.arange(len(places)), places]
        return confidence


def read_contents(folder: Path) -> Contents:
    """Read a run folder.

    Raises
    ------
    DataError
        Where it is none, or holds something that no run writes.
    """
    run = read_run(folder)
    facts, scores = _json(folder / "run.json"), _json(folder / "metrics.json")
    folds = scores.get("folds")
    folds = [fold for fold in folds if isinstance(fold, dict)] if isinstance(folds, list) else []
    table = _predictions(folder / "predictions.csv")
    known, used = facts.get("classes"), {*table["true"], *table["pred"]}
    classes = list(map(str, known)) if isinstance(known, list) and known else sorted(used)
    if odd := used - set(classes):
        raise DataError(f"{folder}/predictions.csv has labels that are no classes of the run: "
                        f"{', '.join(sorted(odd)[:3])}", refit_remedy(folder))  # fmt: skip
    columns = [f"p_{name}" for name in classes]
    proba = None
    if set(columns) <= set(table.columns):
        try:
            proba = table[columns].to_numpy(np.float64)
        except ValueError as error:
            raise DataError(f"{folder}/predictions.csv: {error}", refit_remedy(folder)) from None
    ids, fold, true, pred = (
        table[name].to_numpy(np.str_) if len(table) else np.zeros(0, np.str_)
        for name in ("id", "fold", "true", "pred")
    )
    return Contents(
        run=run, facts=facts, folds=folds, classes=classes, ids=ids, fold=fold, true=true,
        pred=pred, proba=proba, attention=_attention(scores, folds),
        leaks=read_leaks(folder),
    )  # fmt: skip


def read_leaks(folder: Path) -> list[dict[str, Any]]:
    """The findings in leaks.json as plain dicts; none where the file is not there or damaged."""
    try:
        found = json.loads((folder / "leaks.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if isinstance(found, dict):
        inner = found.get("leaks", found.get("findings"))
        found = inner if isinstance(inner, list) else [
            {"kind": str(kind), "what": value} for kind, value in found.items() if value
        ]  # fmt: skip
    if not isinstance(found, list):
        return []
    return [leak if isinstance(leak, dict) else {"what": str(leak)} for leak in found]


def leak_text(leak: dict[str, Any]) -> str:
    """A finding as one line."""
    for name in ("text", "message", "problem", "what"):
        if isinstance(leak.get(name), str):
            return str(leak[name])
    return ", ".join(f"{name}: {value}" for name, value in leak.items())[:300]


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json, of a folder that `read_run` could read; empty where it is gone since."""
    return _json(folder / "run.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _predictions(path: Path) -> pd.DataFrame:
    text = dict.fromkeys(("id", "fold", "true", "pred", "group"), str)
    try:
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={})
        missing = {"id", "fold", "true", "pred"} - set(table.columns)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as predictions: {error}", refit_remedy(path.parent)
        ) from None
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(sorted(missing))}", refit_remedy(path.parent)
        )
    return table


def _attention(scores: dict[str, Any], folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is whole of the weights that a fusion learned."""
    found = [scores.get("attention"), *(fold.get("attention") for fold in folds)]
    return [one for one in found if isinstance(one, dict) and _is_whole(one)]


def _is_whole(attention: dict[str, Any]) -> bool:
    try:
        mean = np.asarray(attention["mean"], np.float64)
        return mean.shape == (len(attention["classes"]), len(attention["backbones"]))
    except (KeyError, TypeError, ValueError):
        return False
