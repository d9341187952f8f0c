"""Run folder: one candidate's result on disk, in JSON and CSV that any tool reads."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.atomic import place
from featcache.errors import DataError, UnknownData
from featcache.fitting.evaluate import Result
from featcache.fitting.fold import FoldResult
from featcache.fitting.grid import Candidate
from featcache.fitting.splits import Fold, describe_folds, folds_to_json, is_leaky
from featcache.reporting.bundle import FOLDER, Writer, try_to_write
from featcache.reporting.digest import FORMAT, run_name
from featcache.reporting.predictions import write_predictions
from featcache.store.features import Features

LEAKS = "leaks.json"
ALPHA = 0.05  # differences with a smaller p-value are taken as more than chance
_LIBRARIES = ("featcache", "numpy", "scikit-learn", "torch", "xgboost")


@dataclass(frozen=True)
class Run:
    """What a comparison shows of one run folder.

    Attributes
    ----------
    folder : Path
    data, fusion, head : str
    backbones : tuple of str
    split : str
        How it was tested: "test split", "5 folds" or "3 x 5 folds".
    rows : str
        Digest of the rows and folds: runs with equal ones were tested on the same.
    tested : int
        Test rows of all folds together, each counted once.
    metrics, sd : dict of str to float
        Mean over the folds, and its standard deviation; None where undefined.
    interval : (low, high)
        95 % interval of the accuracy.
    fit_seconds : float
        One fit, as the mean over the folds.
    created : str
    p : float or None
        How likely chance alone makes it differ this much from the best of the runs it was
        compared with, adjusted for their number; None for the best and where not tested. Not
        kept in the folder: it depends on what else is there.
    leaky : bool
        Whether rows of one image, or group, were let to both sides of the split on purpose.
    select : str
        The selection of columns before the head; "" for none.
    tune : int
        Settings tried in the inner loop; 0 where nothing was tuned.
    view : tuple of str
        The views that trained beside their images, sorted.
    balance : bool
        Whether of the views only those trained that bring each class to the most frequent one's
        count.
    """

    folder: Path
    data: str
    backbones: tuple[str, ...]
    fusion: str
    head: str
    split: str
    rows: str
    tested: int
    metrics: dict[str, float | None]
    sd: dict[str, float | None]
    interval: tuple[float, float]
    fit_seconds: float
    created: str
    p: float | None = None
    leaky: bool = False
    select: str = ""
    tune: int = 0
    view: tuple[str, ...] = ()
    balance: bool = False

    @property
    def tie(self) -> bool:
        """Whether the difference to the best may well be chance."""
        return self.p is not None and self.p >= ALPHA

    @property
    def candidate(self) -> str:
        """What was fitted, whatever rows it was given: "resnet18+mobilenet_v2.concat.mlp"."""
        named = (self.backbones, self.fusion, self.head, self.select, self.tune)
        return Candidate(*named).name

    @property
    def name(self) -> str:
        """The candidate and the views that it was trained with, see `run_name`."""
        return run_name(self.candidate, self.view, self.balance)

    def metric(self, name: str) -> float:
        """A metric's mean, NaN where it has none."""
        value = self.metrics.get(name)
        return float("nan") if value is None else value


def save_run(
    folder: Path,
    result: Result,
    features: Features,
    folds: Sequence[Fold],
    *,
    rows: str,
    seed: int,
    settings: Mapping[str, Any],
    write_model: Writer | None = None,
    facts: Mapping[str, Any] | None = None,
    leaks: Mapping[str, Any] | None = None,
    again: bool = True,
) -> Run:
    """Write a run folder, all or nothing, in place of one that is there.

    Parameters
    ----------
    folder : Path
    result : Result
    features : Features
        What was evaluated.
    folds : sequence of Fold
    rows : str
        Their `rows_digest`.
    seed : int
    settings : mapping
        What was set besides the defaults.
    write_model : callable, optional
        Writes the bundle into the folder that it is given, see `bundle`.
    facts : mapping, optional
        What else run.json is to say.
    leaks : mapping, optional
        What leaks.json is to hold, see `leaks_to_json`.
    again : bool, default True
        False: a whole one that another process has written meanwhile stays, and is returned.
    """
    run = Run(
        folder=folder,
        data=result.data,
        backbones=tuple(result.backbones),
        fusion=result.fusion,
        head=result.head,
        split=describe_folds(folds),
        rows=rows,
        tested=len({id_ for fold in result.folds for id_ in fold.ids.tolist()}),
        metrics=finite(result.metrics),
        sd=finite(result.sd),
        interval=result.interval,
        fit_seconds=result.fit_seconds / len(result.folds),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        leaky=is_leaky(folds),
        select=settings.get("select", ""),
        tune=settings.get("tune", 0),
        view=_names((facts or {}).get("view")),
        balance=bool((facts or {}).get("balance")),
    )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        told = {**_facts(run, result, seed, settings), **(facts or {})}
        _write_json(temporary / "run.json", told)
        _write_json(temporary / "metrics.json", _metrics(run, result))
        _write_json(temporary / "splits.json", folds_to_json(folds, features))
        write_predictions(temporary / "predictions.csv", result, features)
        if leaks is not None:
            _write_json(temporary / LEAKS, leaks)
        if write_model is not None:
            try_to_write(temporary / FOLDER, write_model, folder)
        if not place(temporary, folder, "run.json", again):
            return read_run(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run


def read_run(folder: Path) -> Run:
    """Read what a comparison shows of a run folder.

    Raises
    ------
    DataError
        If it is no run folder; UnknownData if it is not there.
    """
    if not folder.is_dir():
        raise UnknownData(f"no run folder {folder}", "Name one below reports/.")
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        check_run_types(facts, scores)
        return Run(
            folder=folder,
            data=facts["data"],
            backbones=tuple(facts["backbones"]),
            fusion=facts["fusion"],
            head=facts["head"],
            split=facts["split"],
            rows=facts["rows"],
            tested=facts["tested"],
            metrics=scores["mean"],
            sd=scores["sd"],
            interval=(scores["interval"][0], scores["interval"][1]),
            fit_seconds=facts["fit_seconds"],
            created=facts["created"],
            leaky=facts.get("leaky") is True,
            select=facts.get("select") or "",
            tune=int(facts.get("tune") or 0),
            view=_names(facts.get("view")),
            balance=facts.get("balance") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(
            f"{folder} is no run folder: {type(error).__name__} {error}",
            "A run folder holds run.json and metrics.json; delete it if it is of no use.",
        ) from None


def _names(value: Any) -> tuple[str, ...]:
    """One name, several or none."""
    return (value,) if isinstance(value, str) else tuple(map(str, value or ()))


def _facts(
    run: Run, result: Result, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    plain = asdict(run)
    for elsewhere in ("folder", "metrics", "sd", "interval", "p"):
        del plain[elsewhere]
    return {
        "format": FORMAT,
        "name": run.name,
        **plain,
        "seed": seed,
        "settings": dict(settings),
        "keys": dict(zip(result.backbones, result.keys, strict=True)),
        "classes": result.classes,
        "predict_seconds": result.predict_seconds / len(result.folds),
        "versions": {name: installed_version(name) for name in _LIBRARIES},
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def _metrics(run: Run, result: Result) -> dict[str, Any]:
    return {
        "mean": run.metrics,
        "sd": run.sd,
        "interval": list(run.interval),
        "folds": [fold_facts(fold, run.backbones) for fold in result.folds],
    }


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:  # piece by piece: folds are long
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def installed_version(library: str) -> str | None:
    """The version of a library; None if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


# What only some runs, or later versions, write.
_OPTIONAL: dict[str, tuple[type | tuple[type, ...], str]] = {
    "select": (str, "text"),
    "keys": (dict, "text by name"),
    "settings": (dict, "values by name"),
    "versions": (dict, "text by name"),
    "machine": (dict, "values by name"),
    "view": ((list, str), "names"),
}


def check_run_types(facts: Any, scores: Any) -> None:
    """Look through run.json and metrics.json.

    Raises
    ------
    TypeError
        If a value has another type than `save_run` writes; it names the value.
    KeyError
        If one is missing.
    """
    for name, value in (("run.json", facts), ("metrics.json", scores)):
        if not isinstance(value, dict):
            raise TypeError(f"{name} holds no JSON object")
    for name in ("data", "fusion", "head", "split", "rows", "created"):
        _need(isinstance(facts[name], str), name, facts[name], "text")
    backbones = facts["backbones"]
    several = isinstance(backbones, list) and backbones != []
    _need(several and all(isinstance(b, str) for b in backbones), "backbones", backbones, "names")
    for name in ("tested", "fit_seconds"):
        _need(_is_number(facts[name]), name, facts[name], "a number")
    interval = scores["interval"]
    two = isinstance(interval, list) and len(interval) == 2
    _need(two and all(_is_number(end) for end in interval), "interval", interval, "two numbers")
    for name in ("mean", "sd"):
        numbers = scores[name]
        good = isinstance(numbers, Mapping) and all(
            value is None or _is_number(value) for value in numbers.values()
        )
        _need(good, name, numbers, "numbers by name")
    for name, (kind, called) in _OPTIONAL.items():
        value = facts.get(name)
        _need(value is None or isinstance(value, kind), name, value, called)
    keys = facts.get("keys") or {}
    _need(all(isinstance(key, str) for key in keys.values()), "keys", keys, "text by name")
    tune = facts.get("tune")
    _need(tune is None or _is_number(tune), "tune", tune, "a number")


def _need(good: bool, name: str, value: Any, kind: str) -> None:
    if not good:
        raise TypeError(f"{name} is {str(value)[:60]!r}, not {kind}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def fold_facts(fold: FoldResult, backbones: Sequence[str]) -> dict[str, Any]:
    """A fold as plain JSON values.

    `tuned` is what a search among settings came to, and `attention` the mean weight (classes,
    backbones) of each backbone for the test rows of each class; each is left out if there is none.
    """
    facts: dict[str, Any] = {
        "name": fold.name,
        "train": fold.train_size,
        "train_images": fold.train_images,
        "test": len(fold.ids),
        "metrics": finite(fold.metrics),
        "fit_seconds": fold.fit_seconds,
        "predict_seconds": fold.predict_seconds,
        "history": fold.history,
    }
    if fold.tuned is not None:
        facts["tuned"] = fold.tuned
    if fold.attention is not None:
        facts["attention"] = {
            "classes": list(fold.attention),
            "backbones": list(backbones),
            "mean": list(fold.attention.values()),
        }
    return facts


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if value != value else float(value) for name, value in values.items()}
