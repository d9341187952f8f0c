"""Compare: the grid of candidates on shared folds, each fitted once and kept as a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.errors import CacheRefused
from featcache.fitting.checks import check_features
from featcache.fitting.evaluate import evaluate_all
from featcache.fitting.executor import Executor, executor_of
from featcache.fitting.fitted_steps import FittedSteps
from featcache.fitting.grid import Candidate, candidates, classifier_of
from featcache.fitting.leakage import (
    can_search_near,
    find_leaks,
    leaks_from_json,
    leaks_to_json,
    refuse_trained,
    report_leaks,
)
from featcache.fitting.out_of_core import check_streams
from featcache.fitting.splits import Fold, balanced, check_plan, make_folds, only_images, viewed
from featcache.images.remote import need_folder
from featcache.reporting.comparison import Comparison, sort_runs, write_comparison
from featcache.reporting.digest import folder_name, rows_digest, run_digest, run_name
from featcache.reporting.html import need_writable, write_text
from featcache.reporting.refit_model import give_model, pipeline_writer
from featcache.reporting.run_folder import LEAKS, Run, read_run, save_run
from featcache.reporting.run_page import quick_page
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile
from featcache.store.features import Features
from featcache.store.lazy import LazyRows

__all__ = ["Comparison", "compare"]


def compare(
    features: Features,
    *,
    fusion: Any = "concat",
    head: Any = "mlp",
    singles: bool = True,
    folds: int | None = None,
    test_split: bool | None = None,
    repeats: int = 1,
    group: str | None = None,
    balance: bool = False,
    leaky: bool = False,
    strict: bool = False,
    near_duplicates: bool = True,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    jobs: int = 1,
    reports: str | Path = "reports",
    gate: str = "refuse",
    again: bool = False,
    fitted: Callable[[int, int, Run], None] | None = None,
    cache: str | Path | None = None,
    select: str = "",
    tune: int = 0,
    tuner: str = "random",
    ablate: bool = False,
    protocol: str = "",
    crew: Executor | None = None,
    opened: Sequence[str] = (),
) -> Comparison:
    """Fit and score every candidate on the same folds.

    The candidates are every fusion under every head on all backbones together, and each
    backbone alone under every head. A candidate that was run before on the same features,
    labels, folds and settings is read from its run folder.

    On a test split every run keeps the model that was scored; with folds the best is fitted once
    more, on all rows, and kept. See `bundle`.

    The order of the backbones makes no other candidate: they are always fitted in that of their
    names.

    Parameters
    ----------
    features : Features
        Where X stays on disk (`Cache.features` with `lazy`), fits read it block by block.
    fusion, head : str, sklearn estimator, or sequence of these
        Names in `FUSIONS` and `HEADS`, or objects of your own, which are cloned for each fold:
        transformers that may have a parameter `blocks` as fusions, classifiers as heads. They are
        called by their class and the parameters that differ from its defaults. A run is known
        again by these too, not by the code of the class: after an edit pass `again=True`.
    singles : bool, default True
        Also each backbone alone.
    folds : int, optional
        Stratified K-fold; by default the data's test split, else five folds.
    test_split : bool, optional
        Insist on the data's own split, or don't use it.
    repeats : int, default 1
        K-fold this many times, shuffled anew each time.
    group : {None, "image", "subject"}, default None
        What stays on one side of a split, see `make_folds`.
    balance : bool, default False
        Of the views take as many as bring each class, inside each fold, to the count of the most
        frequent one; by default all train.
    leaky : bool, default False
        Redo a protocol that splits rows as if views, groups and equal images stood alone; whatever
        comes of it says so.
    strict : bool, default False
        Refuse what is otherwise warned of: see `find_leaks`.
    near_duplicates : bool, default True
        Look for near duplicates across the split too.
    seed : int, default 0
    settings : mapping, optional
        Parameters by dotted name, for instance {"mlp.hidden": 512}.
    jobs : int, default 1
        Folds fitted at the same time.
    reports : str or Path, default "reports"
        Where run folders go.
    gate : {"refuse", "warn", "off"}, default "refuse"
        What to do about features that look broken.
    again : bool, default False
        Fit even what was run before.
    fitted : callable, optional
        Called after each candidate with its number, how many there are, and its run: first for
        those that were run before, then for each as it is done.
    cache : str or Path, optional
        The cache folder. If it is given, the best run gets its report.html, with images and
        a data card from there; of any other run it is made by `write_run_page`.
    select : str, default ""
        A selection of columns before every head, see `make_selection`: "anova:256".
    tune : int, default 0
        Settings to try for each candidate, in an inner loop on its training rows; see `tuning`.
    tuner : {"random", "optuna"}, default "random"
    ablate : bool, default False
        Add all backbones but one, for every fusion and head.
    protocol : str, default ""
        What a recipe calls this way of evaluating; noted in each run.json.
    crew : Executor, optional
        Processes elsewhere that fit, folds of several candidates at a time, in place of `jobs`.

    opened : sequence of str, default ()
        With which options the command line opened the images, for the command that redoes a run;
        () for the data set as the cache has it.

    Returns
    -------
    Comparison
        Of this grid, best first. The comparison files below `reports` cover every run there.
    """
    features = features.in_order()
    check_plan(viewed(features), balance, leaky, strict, repeats)
    grid = [
        replace(candidate, select=select, tune=tune, tuner=tuner)
        for candidate in candidates(
            features.names, _several(fusion), _several(head), singles, ablate
        )
    ]
    # Late fusions last: they take the heads that were fitted on each backbone alone.
    grid.sort(key=lambda candidate: candidate.fusion in ("vote", "stack"))
    if isinstance(features.X, LazyRows):
        for candidate in grid:
            check_streams(classifier_of(candidate, seed, settings))
    check_features(features, gate)
    # Before the first fit, and also of those that need none.
    unfitted = {candidate: classifier_of(candidate, seed, settings) for candidate in grid}
    split = make_folds(
        features, folds, test_split, group, seed, repeats=repeats, balance=balance, leaky=leaky
    )
    rows = rows_digest(features, split)
    need_folder(reports, "the reports folder")
    need_writable(Path(reports) / features.data)
    fused = next(candidate for candidate in grid if candidate.backbones == features.names)
    first = _folder(fused, features, rows, seed, settings or {}, Path(reports), balance)
    known = first if first.is_dir() and not again else None
    near = near_duplicates
    leaks = check_leakage(
        features, split, known, Path(reports), near and can_search_near(features), strict
    )
    asked: dict[str, Any] = {
        "view": viewed(features), "group": group, "repeats": repeats, "balance": balance,
        "strict": strict, "protocol": protocol, "opened": list(opened),
        "gate": gate if gate != "refuse" else "", "streamed": isinstance(features.X, LazyRows),
        "cache": "" if cache is None or Path(cache) == Path("cache") else str(cache),
    }  # fmt: skip
    facts = {name: value for name, value in asked.items() if value} | {"leaky": leaky}
    facts |= {} if near else {"near_duplicates": False}
    options = {
        "view": viewed(features), "group": group, "repeats": repeats * (repeats > 1),
        "balance": balance, "leaky": leaky, "strict": strict, "seed": seed, "settings": settings,
        "reports": str(reports), "select": select, "tune": tune, "tuner": tuner if tune else "",
        "protocol": protocol,
    }  # fmt: skip
    spent = extraction_seconds(features, cache)
    folders = {
        candidate: _folder(
            candidate, features.select(candidate.backbones, vectors=False), rows, seed,
            settings or {}, Path(reports), balance,
        )
        for candidate in grid
    }  # fmt: skip
    runs: dict[Candidate, Run] = {}

    def note(candidate: Candidate, run: Run) -> None:
        runs[candidate] = run
        if fitted is not None:
            fitted(len(runs), len(grid), run)

    for candidate, folder in folders.items():
        if (folder / "run.json").is_file() and not again:
            note(candidate, read_run(folder))
    todo = {candidate: unfitted[candidate] for candidate in grid if candidate not in runs}
    results = evaluate_all(
        todo, features, split, FittedSteps.of(todo), crew or executor_of(jobs), seed,
        keep=len(split) == 1,
    )  # fmt: skip
    with closing(results):
        for candidate, result in results:
            chosen = features.select(candidate.backbones, vectors=False)
            mine = _settings_of(candidate, settings or {})
            pipeline = result.folds[0].classifier
            name = run_name(candidate.name, viewed(features), balance)
            write = pipeline and pipeline_writer(
                pipeline, candidate, chosen, split, seed, mine, name
            )
            run = save_run(
                folders[candidate], result, chosen, split, rows=rows, seed=seed,
                settings=mine | candidate.options, write_model=write, again=again,
                facts=facts | _cost(candidate, spent)
                | own_facts(candidate, chosen, split, cache, options),
                leaks=leaks,
            )  # fmt: skip
            note(candidate, run)
    done = sort_runs([runs[candidate] for candidate in grid])
    # With folds the model is fitted on what any of them might have trained on.
    whole = features.rows(balanced(features, seed)) if balance and len(split) > 1 else features
    best = next(one for one in grid if runs[one].folder == done.best.folder)
    give_model(done.best, best, whole, split, seed, _settings_of(best, settings or {}))
    chosen = only_images(features).select(best.backbones)
    place = None if cache is None else Path(cache)
    write_comparison(
        Path(reports),
        None if place is None else lambda runs: quick_page(done.best.folder, runs, chosen, place),
    )
    return done


def _folder(
    candidate: Candidate,
    chosen: Features,
    rows: str,
    seed: int,
    settings: Mapping[str, Any],
    reports: Path,
    balance: bool,
) -> Path:
    """Where the run of a candidate on its own features belongs, or is."""
    mine = _settings_of(candidate, settings)
    mine |= candidate.options
    asked = candidate.identity("fusion"), candidate.identity("head")
    digest = run_digest(chosen, rows, *asked, seed, mine)
    folder = reports / chosen.data
    # Earlier versions left the views out of the name; the digest is the same.
    earlier = folder / folder_name(candidate.name, digest)
    named = folder / folder_name(run_name(candidate.name, viewed(chosen), balance), digest)
    return earlier if (earlier / "run.json").is_file() else named


def _cost(candidate: Candidate, spent: Mapping[str, float]) -> dict[str, Any]:
    """What its features took, for run.json; nothing where that isn't known of all."""
    if not all(name in spent for name in candidate.backbones):
        return {}
    return {"extraction_seconds": {name: spent[name] for name in candidate.backbones}}


def _settings_of(candidate: Candidate, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that mean this candidate."""
    known = ("fusion", "select", "head", candidate.fusion, candidate.head)
    return {name: value for name, value in settings.items() if name.split(".")[0] in known}


def _several(asked: Any) -> list[Any]:
    """Of one name or object a list; scikit-learn's ensembles and pipelines can be iterated too."""
    several = isinstance(asked, Iterable) and not isinstance(asked, str)
    return list(asked) if several and not hasattr(asked, "get_params") else [asked]


def check_leakage(
    features: Features,
    folds: Sequence[Fold],
    known: Path | None,
    reports: Path,
    near: bool = True,
    strict: bool = False,
) -> dict[str, Any]:
    """Find leaks, and warn of them or refuse them.

    Parameters
    ----------
    features : Features
    folds : sequence of Fold
    known : Path or None
        A run folder with the same features and folds: what was found for it is not searched again.
    reports : Path
        The reports folder. What `strict` refuses is listed there, in the data set's leaks.json.
    near : bool, default True
        Also near duplicates.
    strict : bool, default False

    Returns
    -------
    dict
        What leaks.json is to hold.

    Raises
    ------
    CacheRefused
        If a backbone was fine-tuned on test images; with `strict` for any leak.
    """
    refuse_trained(features, folds)
    plain = None if known is None else _read(known / LEAKS, near)
    if plain is None:
        plain = leaks_to_json(find_leaks(features, folds, near), near)
    leaks = leaks_from_json(plain)
    listed = reports / features.data / LEAKS
    if strict and leaks:
        listed.parent.mkdir(parents=True, exist_ok=True)
        write_text(listed, json.dumps(plain, indent=1) + "\n")
    report_leaks(leaks, strict, str(listed))
    return plain


def _read(path: Path, near: bool) -> dict[str, Any] | None:
    """What an earlier run found; None where it did not look for near duplicates and now should."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        leaks_from_json(plain)
        searched = bool(plain["near_duplicates_searched"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if near and not searched:
        return None
    if searched and not near:
        plain["leaks"] = [leak for leak in plain["leaks"] if leak["kind"] != "near duplicates"]
        plain["near_duplicates_searched"] = False
    return dict(plain)


def extraction_seconds(features: Features, cache: str | Path | None) -> dict[str, float]:
    """Seconds that each backbone's file records, by backbone; without those that record none.

    Backbones that were extracted in one pass share its decoding, and each records the whole pass.
    """
    if cache is None:
        return {}
    found = {}
    known = dict(zip(features.keys, features.names, strict=True))
    for entry in Cache(cache).entries(features.data):
        name = known.get(entry.key.digest)
        if name is None:
            continue
        try:
            with FeatureFile(entry.path) as file:
                seconds = float(file.attributes.get("seconds", math.nan))
        except (CacheRefused, OSError, ValueError, TypeError):
            continue
        if math.isfinite(seconds):
            found[name] = seconds
    return found


def own_facts(
    candidate: Candidate,
    features: Features,
    folds: Sequence[Fold],
    cache: str | Path | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What run.json holds beside the names; {} for a candidate of names only.

    Parameters
    ----------
    candidate : Candidate
    features : Features
        With the candidate's backbones only.
    folds : sequence of Fold
    cache : str or Path, optional
        The cache folder.
    options : mapping
        What `compare` was called with; `view` is what the features were loaded with.

    Returns
    -------
    dict
        `own`, the identity of each object; `command`, the Python that fits the run again: the
        command line takes names only.
    """
    if not candidate.own:
        return {}
    given = {name: value for name, value in options.items() if value}
    view = given.pop("view", None)
    repeats = given.get("repeats", 1)
    given |= {"folds": len(folds) // repeats} if len(folds) > 1 else {"test_split": True}
    objects = {role: candidate.own.get(role, getattr(candidate, role)) for role in _ROLES}
    words = ", ".join(f"{name}={value!r}" for name, value in (objects | given).items())
    files = [
        name if "@" in name else f"{name}@{key[:8]}"
        for name, key in zip(features.names, features.keys, strict=True)
    ]
    lines = [
        "# The command line takes no objects. In Python:",
        "import featcache as fc",
        *(f"from {type(one).__module__} import {type(one).__name__}"
          for one in candidate.own.values()),
        f"cache = fc.Cache({str(cache or 'cache')!r})",
        f"images = cache.images({features.data!r})",
        f"files = cache.choose({features.data!r}, {files!r})",
        f"features = cache.features(images, files{f', {view!r}' if view else ''})",
        f"fc.compare(features, singles=False, {words})",
    ]  # fmt: skip
    identities = {role: candidate.identity(role) for role in candidate.own}
    return {"own": identities, "command": "\n".join(lines)}


_ROLES = ("fusion", "head")
