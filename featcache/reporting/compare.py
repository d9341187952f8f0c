"""Compare: the grid of candidates on shared folds, each fitted once and kept as a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.display import notebook_progress
from featcache.errors import CacheRefused, RecipeError
from featcache.fitting.checks import check_features
from featcache.fitting.evaluate import Result, evaluate_all, over_seeds, with_positive
from featcache.fitting.executor import Executor, executor_of
from featcache.fitting.fitted_steps import FittedSteps
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.grid import Candidate, candidates, classifier_of, takes_seed
from featcache.fitting.metrics import metric_of, positive_label
from featcache.fitting.out_of_core import check_streams
from featcache.fitting.pipeline import is_late
from featcache.fitting.splits import (
    SEEDS,
    Fold,
    balanced,
    check_plan,
    make_folds,
    only_images,
    viewed,
)
from featcache.images.remote import need_folder
from featcache.reporting.comparison import Comparison, is_up_to_date, sort_runs, write_comparison
from featcache.reporting.html import RUN_PAGE, need_writable
from featcache.reporting.leaks import check_leakage
from featcache.reporting.run_folder import (
    give_model,
    give_positive,
    pipeline_writer,
    save_run,
)
from featcache.reporting.schema import (
    Run,
    folder_name,
    read_run,
    rows_digest,
    run_digest,
    run_name,
)
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
    seeds: int = 1,
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
    calibrate: bool = True,
    metric: str = "accuracy",
    positive: str | None = None,
    protocol: str = "",
    crew: Executor | None = None,
    opened: Sequence[str] = (),
    report: bool = True,
    pictures: bool = True,
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
        If X stays on disk (`Cache.features` with `lazy`), fits read it block by block.
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
        Of folds and training.
    seeds : int, default 1
        Fit each candidate that takes a seed with so many, `seed` and those behind it, on the same
        folds: as often as long. Its numbers are means over them. What takes none (`knn`,
        `nearest_mean`, objects of your own) is fitted once. The model that is kept is of `seed`.
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
    calibrate : bool, default True
        False is short for the settings `mlp.calibrate`, `lda.calibrate` and `vote.calibrate`:
        their probabilities as they come.
    metric : str, default "accuracy"
        What candidates are ranked and tested by, and the best is chosen by: a name in
        `metrics.METRICS`. Those without probabilities come last, if it takes some.
    positive : str, optional
        The positive one of two classes, which `precision_positive`, `recall_positive` and
        `f1_positive` are of; by default the second in sorted order. Nothing is fitted again for it.
    protocol : str, default ""
        What a recipe calls this way of evaluating; noted in each run.json.
    crew : Executor, optional
        Processes elsewhere that fit, folds of several candidates at a time, in place of `jobs`.
    opened : sequence of str, default ()
        With which options the command line opened the images, for the command that redoes a run;
        () for the data set as the cache has it.
    report : bool, default True
        False: run folders, comparison.csv and .md only; nothing is drawn. Pages that show all that
        is there are not made again in either case.
    pictures : bool, default True
        Show some of the test images in report.html.

    Returns
    -------
    Comparison
        Of this grid, best first. The comparison files below `reports` cover every run there.
    """
    features = features.in_order()
    options = _Options(
        view=viewed(features), group=group, repeats=repeats, balance=balance, leaky=leaky,
        strict=strict, near_duplicates=near_duplicates, seed=seed, seeds=seeds,
        settings=({} if calibrate else _RAW) | dict(settings or {}),
        reports=reports, gate=gate, again=again, cache=cache, select=select, tune=tune,
        tuner=tuner, metric=metric, positive=positive, protocol=protocol, opened=list(opened),
        pictures=pictures,
    )  # fmt: skip
    check_plan(options.view, balance, leaky, strict, repeats)
    grid = candidates(features.names, _several(fusion), _several(head), singles, ablate)
    grid = [replace(one, select=select, tune=tune, tuner=tuner) for one in grid]
    _refuse(grid, features, options)
    check_features(features, gate)
    split = make_folds(
        features, folds, test_split, group, seed, repeats=repeats, balance=balance, leaky=leaky
    )
    need_folder(reports, "the reports folder")
    plan = _Plan(
        features, split, grid, options,
        positive_label(np.unique(features.y).tolist(), positive),
    )  # fmt: skip
    todo = plan.todo()
    need_writable(Path(reports) / features.data)
    leaks = check_leakage(features, split, plan.searched(), Path(reports), near_duplicates, strict)
    executor = crew or executor_of(jobs, len(split))
    runs = _all_runs(_runs(plan, todo, executor, leaks), len(grid), fitted)
    return _finish(plan, runs, report)


def _all_runs(
    found: Generator[tuple[Candidate, Run]],
    count: int,
    fitted: Callable[[int, int, Run], None] | None,
) -> dict[Candidate, Run]:
    """Those that `_runs` finds or makes, each told of as it comes."""
    runs: dict[Candidate, Run] = {}
    with notebook_progress("candidates") as progress, closing(found) as results:
        for candidate, run in results:
            runs[candidate] = run
            if progress is not None:
                progress(len(runs), count)
            if fitted is not None:
                fitted(len(runs), count, run)
    return runs


def _refuse(grid: Sequence[Candidate], features: Features, options: _Options) -> None:
    """What can't be fitted or ranked as asked for, before anything is fitted.

    Raises
    ------
    RecipeError
    """
    by, seed, seeds = metric_of(options.metric), options.seed, options.seeds
    if not 1 <= seeds <= _MOST_SEEDS or (seeds > 1 and seed + seeds > SEEDS):
        raise RecipeError(f"seeds is {seeds}", f"Give 1 to {_MOST_SEEDS}.")
    if by.name == "f1_positive" and len(np.unique(features.y)) != 2:
        raise RecipeError(
            f"metric is {by.name}, of one of two classes", "Rank by f1, the macro F1."
        )
    made = [classifier_of(one, seed, options.settings) for one in grid if by.proba]
    if made and not any(hasattr(one, "predict_proba") for one in made):
        raise RecipeError(
            f"metric is {by.name}, and no candidate gives probabilities",
            "Add a head that does, for instance logreg; or rank by the accuracy.",
        )
    if isinstance(features.X, LazyRows):
        for candidate in grid:
            check_streams(classifier_of(candidate, seed, options.settings))


_MOST_SEEDS = 1000
_RAW = {"mlp.calibrate": False, "lda.calibrate": False, "vote.calibrate": False}


@dataclass(frozen=True)
class _Options:
    """What was asked of a comparison, as far as its runs record it; see `compare`."""

    view: list[str]
    group: str | None
    repeats: int
    balance: bool
    leaky: bool
    strict: bool
    near_duplicates: bool
    seed: int
    seeds: int
    settings: Mapping[str, Any]
    reports: str | Path
    gate: str
    again: bool
    cache: str | Path | None
    select: str
    tune: int
    tuner: str
    metric: str
    positive: str | None
    protocol: str
    opened: list[str]
    pictures: bool

    def facts(self, streamed: bool) -> dict[str, Any]:
        """What run.json holds of them: mostly those that were used."""
        names = ("view", "group", "repeats", "balance", "strict", "protocol", "opened")
        found = {name: getattr(self, name) for name in names}
        found |= {"gate": self.gate if self.gate != "refuse" else "", "streamed": streamed}
        usual = self.cache is None or Path(self.cache) == Path("cache")
        found["cache"] = "" if usual else str(self.cache)
        found = {name: value for name, value in found.items() if value} | {"leaky": self.leaky}
        return found if self.near_duplicates else found | {"near_duplicates": False}

    def keywords(self) -> dict[str, Any]:
        """Those of `compare` that give the run again, if they were used."""
        names = ("group", "repeats", "balance", "leaky", "strict", "seed", "seeds", "settings",
                 "reports", "select", "tune", "tuner", "positive", "protocol")  # fmt: skip
        found = {name: getattr(self, name) for name in names}
        found |= {"repeats": self.repeats * (self.repeats > 1), "reports": str(self.reports)}
        found["seeds"] = self.seeds * (self.seeds > 1)
        found["tuner"] = self.tuner if self.tune else ""
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class _Plan:
    """The candidates, their rows, and where their runs go."""

    features: Features
    folds: Sequence[Fold]
    grid: Sequence[Candidate]
    options: _Options
    positive: str

    @cached_property
    def rows(self) -> str:
        """Digest of rows and folds."""
        return rows_digest(self.features, self.folds)

    @cached_property
    def folders(self) -> dict[Candidate, Path]:
        """Where the run of each candidate belongs, or is."""
        return {candidate: self._folder(candidate) for candidate in self.grid}

    def todo(self) -> dict[Candidate, Any]:
        """Those without a run, each with its unfitted classifier: what can't be fitted is refused.

        Late fusions last: they take the heads that were fitted on each backbone alone.
        """
        again, seed, settings = self.options.again, self.options.seed, self.options.settings
        rest = [
            one for one in self.grid
            if again or not (self.folders[one] / "run.json").is_file()
        ]  # fmt: skip
        rest.sort(key=lambda one: one.fusion in FUSIONS and is_late(FUSIONS[one.fusion]()))
        return {one: classifier_of(one, seed, settings) for one in rest}

    def searched(self) -> Path | None:
        """The run folder whose leaks are those of these features and folds, if it is there."""
        names = self.features.names
        fused = next(one for one in self.grid if one.backbones == names)
        folder = self.folders[fused]
        return folder if folder.is_dir() and not self.options.again else None

    def chosen(self, candidate: Candidate) -> Features:
        """The features of a candidate, without vectors."""
        return self.features.select(candidate.backbones, vectors=False)

    def settings(self, candidate: Candidate) -> dict[str, Any]:
        """Those that mean this candidate."""
        known = ("fusion", "select", "head", candidate.fusion, candidate.head)
        settings = self.options.settings.items()
        return {name: value for name, value in settings if name.split(".")[0] in known}

    def recorded(self, candidate: Candidate) -> dict[str, Any]:
        """What a run's digest and run.json hold beside the names."""
        count = self.options.seeds
        several = {"seeds": count} if count > 1 and self.seeds[candidate] > 1 else {}
        return self.settings(candidate) | candidate.options | several

    def refit(self, candidate: Candidate, number: int) -> Any:
        """Its unfitted classifier with another seed."""
        options = self.options
        return classifier_of(replace(candidate, refit=number), options.seed, options.settings)

    @cached_property
    def seeds(self) -> dict[Candidate, int]:
        """How many each candidate is fitted with; 0 if it takes none."""
        return {
            one: self.options.seeds if takes_seed(self.refit(one, 0), self.refit(one, 1)) else 0
            for one in self.grid
        }

    def name(self, candidate: Candidate) -> str:
        """The run's."""
        return run_name(candidate.name, self.options.view, self.options.balance)

    def _folder(self, candidate: Candidate) -> Path:
        digest = run_digest(
            self.chosen(candidate), self.rows, candidate.identity("fusion"),
            candidate.identity("head"), self.options.seed, self.recorded(candidate),
        )  # fmt: skip
        folder = Path(self.options.reports) / self.features.data
        # Earlier versions left the views out of the name; the digest is the same.
        earlier = folder / folder_name(candidate.name, digest)
        named = folder / folder_name(self.name(candidate), digest)
        return earlier if (earlier / "run.json").is_file() else named


def _runs(
    plan: _Plan, todo: Mapping[Candidate, Any], executor: Executor, leaks: Mapping[str, Any]
) -> Generator[tuple[Candidate, Run]]:
    """The runs that are there, then each of the others as it is fitted and saved."""
    options = plan.options
    for candidate, folder in plan.folders.items():
        if candidate not in todo:
            yield candidate, give_positive(read_run(folder), plan.positive)
    if not todo:
        return
    fits = {
        replace(one, refit=number): plan.refit(one, number) if number else made
        for one, made in todo.items()
        for number in range(max(1, plan.seeds[one]))
    }
    done: dict[Candidate, dict[int, Result]] = {}
    facts = options.facts(isinstance(plan.features.X, LazyRows))
    spent = extraction_seconds(plan.features, options.cache)
    results = evaluate_all(
        fits, plan.features, plan.folds, FittedSteps.of(fits), executor, options.seed,
        keep=len(plan.folds) == 1,
    )  # fmt: skip
    with closing(results):
        for refitted, one in results:
            candidate = replace(refitted, refit=0)
            seeds = plan.seeds[candidate]
            mine = done.setdefault(candidate, {})
            mine[options.seed + refitted.refit] = one
            if len(mine) < seeds:
                continue
            by_seed = dict(sorted(done.pop(candidate).items()))
            result = over_seeds(by_seed, plan.chosen(candidate), plan.folds)
            result = with_positive(result, plan.positive)
            own = _cost(candidate, spent) | own_facts(candidate, plan)
            own |= {"seeds": seeds} if seeds else {}
            yield candidate, _save(plan, candidate, result, facts | own, leaks)


def _save(
    plan: _Plan,
    candidate: Candidate,
    result: Result,
    facts: Mapping[str, Any],
    leaks: Mapping[str, Any],
) -> Run:
    """The run folder of a candidate, with the model if one was kept."""
    chosen, seed, settings = plan.chosen(candidate), plan.options.seed, plan.settings(candidate)
    pipeline = result.folds[0].classifier
    write = pipeline and pipeline_writer(
        pipeline, candidate, chosen, plan.folds, seed, settings, plan.name(candidate)
    )
    return save_run(
        plan.folders[candidate], result, chosen, plan.folds, rows=plan.rows, seed=seed,
        settings=plan.recorded(candidate), write_model=write, again=plan.options.again,
        facts=facts, leaks=leaks,
    )  # fmt: skip


def _finish(plan: _Plan, runs: Mapping[Candidate, Run], report: bool) -> Comparison:
    """Give the best its model and its page, and write the tables over all runs."""
    features, options = plan.features, plan.options
    done = sort_runs([runs[candidate] for candidate in plan.grid], options.metric)
    best = next(one for one in plan.grid if runs[one].folder == done.best.folder)
    # With folds the model is fitted on what any of them might have trained on.
    some = options.balance and len(plan.folds) > 1
    whole = features.rows(balanced(features, options.seed)) if some else features
    give_model(done.best, best, whole, plan.folds, options.seed, plan.settings(best))
    chosen = only_images(features).select(best.backbones)
    cache = None if options.cache is None else Path(options.cache)
    folder, named, shown = done.best.folder, options.opened, options.pictures
    by, page = options.metric, folder / RUN_PAGE if cache else None
    if not report:
        write_comparison(Path(options.reports), None, by, pages=False)
    elif not (shown and is_up_to_date(Path(options.reports), by, page)):
        write_comparison(
            Path(options.reports),
            None
            if cache is None
            else lambda runs: _page(folder, runs, chosen, cache, named, shown),
            by,
        )
    return done


def _page(
    folder: Path,
    runs: Sequence[Run],
    features: Features,
    cache: Path,
    named: Sequence[str],
    pictures: bool,
) -> None:
    from featcache.reporting.run_page import quick_page  # imports matplotlib

    quick_page(folder, runs, features, cache, named, pictures)


def _cost(candidate: Candidate, spent: Mapping[str, float]) -> dict[str, Any]:
    """What its features took, for run.json; nothing if that isn't known of all."""
    if not all(name in spent for name in candidate.backbones):
        return {}
    return {"extraction_seconds": {name: spent[name] for name in candidate.backbones}}


def _several(value: Any) -> list[Any]:
    """Of one name or object a list; scikit-learn's ensembles and pipelines can be iterated too."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return list(value) if several and not hasattr(value, "get_params") else [value]


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
                seconds = file.seconds
        except (CacheRefused, OSError):
            continue
        if math.isfinite(seconds):
            found[name] = seconds
    return found


def own_facts(candidate: Candidate, plan: _Plan) -> dict[str, Any]:
    """What run.json holds beside the names; {} for a candidate of names only.

    Returns
    -------
    dict
        `own`, the identity of each object; `command`, the Python that fits the run again: the
        command line takes names only.
    """
    if not candidate.own:
        return {}
    options, folds, features = plan.options, len(plan.folds), plan.chosen(candidate)
    keywords = options.keywords()
    keywords |= {"folds": folds // options.repeats} if folds > 1 else {"test_split": True}
    objects = {role: candidate.own.get(role, getattr(candidate, role)) for role in _ROLES}
    words = ", ".join(f"{name}={value!r}" for name, value in (objects | keywords).items())
    files = [
        name if "@" in name else f"{name}@{key[:8]}"
        for name, key in zip(features.names, features.keys, strict=True)
    ]
    lines = [
        "# The command line takes no objects. In Python:",
        "import featcache as fc",
        *(f"from {type(one).__module__} import {type(one).__name__}"
          for one in candidate.own.values()),
        f"cache = fc.Cache({str(options.cache or 'cache')!r})",
        f"images = cache.images({features.data!r})",
        f"files = cache.choose({features.data!r}, {files!r})",
        f"features = cache.features(images, files{f', {options.view!r}' if options.view else ''})",
        f"fc.compare(features, singles=False, {words})",
    ]  # fmt: skip
    identities = {role: candidate.identity(role) for role in candidate.own}
    return {"own": identities, "command": "\n".join(lines)}


_ROLES = ("fusion", "head")
