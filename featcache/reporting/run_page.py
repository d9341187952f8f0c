"""Run page: report.html of one run, and the plots and tables beside it."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.atomic import regular
from featcache.csv_cells import read_cell
from featcache.errors import FeatcacheError, counted
from featcache.fitting.metrics import ACCURACY, MANY_CLASSES, metric_intervals, refit_inflation
from featcache.fitting.splits import factorize, only_images
from featcache.images.manifest import SPLITS, Images
from featcache.images.sources import find_reader
from featcache.reporting.html import RUN_PAGE, digest_of, picture, shown_by, write_page
from featcache.reporting.places import without_place, without_places
from featcache.reporting.plots.confusion import (
    ClassScore,
    class_scores,
    confusion,
    plot_confusion,
    worst_pairs,
    write_class_scores,
)
from featcache.reporting.plots.curves import (
    plot_learning_curves,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
    reliability,
)
from featcache.reporting.plots.features import (
    attention,
    embed,
    plot_attention,
    plot_map,
    read_map,
    write_map,
)
from featcache.reporting.plots.samples import (
    MAP_SIZE,
    Draw,
    Sample,
    map_points,
    right_samples,
    thumbnail,
    wrong_samples,
)
from featcache.reporting.plots.style import MARKERS, colour, draw, log, marker, only_warns
from featcache.reporting.predictions import PROBABILITIES, read_design
from featcache.reporting.refit_command import redo_command
from featcache.reporting.run_reader import Contents, read_contents
from featcache.reporting.schema import Run, decimals, run_label
from featcache.reporting.ties import METHOD
from featcache.store.cache import Cache, Coverage
from featcache.store.features import Features
from featcache.store.lazy import LazyRows

_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision (macro)",
    "recall": "recall (macro)",
    "f1": "F1 (macro)",
    "precision_positive": "precision (positive class, {})",
    "recall_positive": "recall (positive class, {})",
    "f1_positive": "F1 (positive class, {})",
    "auc": "AUC",
    "log_loss": "log loss (nats)",
    "ece": "calibration error (ECE)",
}
_MOST_KINDS = 12  # of mistakes, to choose from


@dataclass(frozen=True)
class Depth:
    """How much work the map of the features may be.

    Attributes
    ----------
    rows : int
        Images on it.
    steps : int
        Of t-SNE.
    pictures : int, default 150
        Of its images, shown when they are pointed at.
    """

    rows: int
    steps: int
    pictures: int = 150


QUICK = Depth(600, 500)  # after every fit: about a second
FULL = Depth(2000, 750, 600)  # when the page is asked for


def write_run_page(
    folder: Path,
    *,
    among: Sequence[Run] = (),
    features: Features | None = None,
    images: Images | None = None,
    cache: Path | None = None,
    depth: Depth = FULL,
    named: Sequence[str] = (),
    pictures: bool = True,
) -> Path:
    """Write report.html of a run, its plots as PNG and SVG, and per_class.csv.

    What can't be had (the images, the features) is left out, and the page says so.

    Parameters
    ----------
    folder : Path
        A run folder.
    among : sequence of Run, default ()
        All runs with the same rows, best first and marked by `mark_ties`: where this one stands.
    features : Features, optional
        What the run was fitted on, for the map; by default read from the cache.
    images : Images, optional
        That can be read, for the pictures; by default looked for where they were extracted.
    cache : Path, optional
        The cache folder; without it there is no data card, no map and no picture unless
        `features` or `images` are passed.
    depth : Depth
    named : sequence of str, default ()
        Words of the command line: pictures are fetched from URLs among them only, not from any
        that a file names.
    pictures : bool, default True
        Show some of the test images.

    Returns
    -------
    Path
        Of report.html.

    Raises
    ------
    DataError
        If the folder is no whole run folder.
    """
    contents = read_contents(folder)
    place = None if cache is None else cache / contents.run.data
    manifest = _manifest(cache, contents.run.data, features) or images
    shown = images or manifest
    reader = None if shown is None or not pictures else find_reader(place or Path(), shown, named)
    picture_of = None if reader is None else functools.cache(functools.partial(thumbnail, reader))
    scores = class_scores(contents)
    write_class_scores(folder, scores)
    _draw_map(contents, features, manifest, cache, depth)
    _draw_plots(contents)
    run, samples = contents.run, _samples(contents, picture_of)
    return write_page(
        folder / RUN_PAGE,
        "report.html.j2",
        digest_of(folder.parent, among[0].by.name if among else run.by.name),
        run=run,
        label=run_label(run),
        digits=decimals(*run.interval),
        standing=standing(run, among),
        leaks=[without_places(leak) for leak in contents.leaks],
        metrics=_metrics(contents),
        folds=contents.folds,
        classes=contents.classes,
        plots={name: picture(folder, name) for name in (
            "curves", "confusion", "roc", "pr", "reliability", "attention")},
        confusion=_confusion(contents),
        reliability=reliability(contents),
        attention=attention(contents),
        scores=_shown(scores),
        many=MANY_CLASSES,
        apart=(folder / PROBABILITIES).is_file(),
        wrong=int((~contents.right).sum()),
        predictions=len(contents.ids),
        samples=samples,
        pictures=pictures,
        map=_map(contents, picture_of, depth),
        most=FULL.rows,
        card=data_card(contents, manifest, place),
        times=_times(contents, cache),
        command=redo_command(run, places=False),
        place=without_place(str(run.folder)),
    )  # fmt: skip


def quick_page(
    folder: Path,
    among: Sequence[Run],
    features: Features,
    cache: Path,
    named: Sequence[str] = (),
    pictures: bool = True,
) -> None:
    """The page of a run that was just fitted: a smaller map, and only if any run has changed.

    Without pictures it is made anew: the one that is there may hold some. That it can't be made
    costs a warning only.
    """
    page = folder / RUN_PAGE
    if pictures and shown_by(page) == digest_of(folder.parent, among[0].by.name):
        return
    with only_warns(f"{folder.name}/{RUN_PAGE}"):
        try:
            write_run_page(
                folder, among=among, features=features, cache=cache, depth=QUICK, named=named,
                pictures=pictures,
            )  # fmt: skip
        except FeatcacheError as error:
            log.warning("no %s: %s", page, error.problem)


def standing(run: Run, among: Sequence[Run]) -> str:
    """Where a run stands among those with the same rows, in a sentence."""
    family = [one for one in among if (one.data, one.rows) == (run.data, run.rows)]
    place = next((i for i, one in enumerate(family) if one.folder.name == run.folder.name), None)
    if place is None or len(family) < 2:
        return ""
    if place == 0:
        ties = sum(one.tie for one in family)
        sentence = f"The best of {counted(len(family), 'run')} on the same rows"
        if ties:
            return f"{sentence}; {ties} of them can't be told from it {METHOD}."
        return f"{sentence}."
    p = family[place].p
    where = f"Number {place + 1} of {counted(len(family), 'run')} on the same rows; the best is "
    sentence = f"{where}{family[0].name} with {_ranked(family[0])}"
    if p is None:
        return f"{sentence}."
    verdict = (
        "can't be told from this one" if family[place].tie else "is better by more than chance"
    )
    return f"{sentence}, which {verdict} (paired max-T test: p = {p:.2g})."


def _ranked(run: Run) -> str:
    """Its accuracy, or the name and value of what else it is ranked by."""
    score = f"{run.score:.{run.decimals}f}"
    return score if run.by is ACCURACY else f"{run.by.label} {score}"


def _manifest(cache: Path | None, data: str, features: Features | None) -> Images | None:
    """All images of the data set; of features that stay on disk, those that they are of.

    If the features are too large for memory, the same rows a second time are felt too.
    """
    if cache is None:
        return None
    if features is not None and isinstance(features.X, LazyRows) and not read_failed(cache / data):
        one = only_images(features)
        return Images(data, one.ids, one.sha256, one.y, one.groups, one.split)
    try:
        return Cache(cache).images(data)
    except (FeatcacheError, OSError):
        return None


def _draw_plots(contents: Contents) -> None:
    folder = contents.run.folder
    draw("curves", folder, lambda: plot_learning_curves(contents.folds))
    draw("confusion", folder, lambda: plot_confusion(contents))
    draw("roc", folder, lambda: plot_roc(contents))
    draw("pr", folder, lambda: plot_precision_recall(contents))
    draw("reliability", folder, lambda: plot_reliability(contents))
    draw("attention", folder, lambda: plot_attention(contents))
    wrong = frozenset(contents.ids[~contents.right].tolist())
    draw("embedding", folder, lambda: plot_map(read_map(folder), wrong))


def _draw_map(
    contents: Contents,
    features: Features | None,
    manifest: Images | None,
    cache: Path | None,
    depth: Depth,
) -> None:
    """Make embedding.csv, unless one as large is there."""
    folder, known = contents.run.folder, read_map(contents.run.folder)
    if known is not None and len(known.ids) >= min(depth.rows, len(contents.ids)):
        return
    with only_warns(f"map of the features of {folder.name}"):
        try:
            if features is None and cache is not None and manifest is not None:
                features = _features(contents, manifest, Cache(cache))
            if features is not None:
                write_map(folder, embed(features, depth.rows, depth.steps))
        except FeatcacheError as error:
            log.warning("no map of the features of %s: %s", folder.name, error.problem)


def _features(contents: Contents, manifest: Images, cache: Cache) -> Features | None:
    """What the run was fitted on, if the cache still has it under the same keys."""
    digests = list(contents.run.keys.values())
    entries = {entry.key.digest: entry for entry in cache.entries(contents.run.data)}
    if not digests or not set(digests) <= set(entries):
        return None
    return cache.features(manifest, [entries[digest] for digest in digests], lazy=True)


def _metrics(contents: Contents) -> list[dict[str, Any]]:
    """Rows of the metrics table: all means, the spread over folds, intervals."""
    run, rows = contents.run, []
    intervals = {**_intervals(contents), "accuracy": run.interval}
    names = [*_METRICS, *(name for name in run.metrics if name not in _METRICS)]
    for name in names:
        if name in run.metrics:
            label = _METRICS.get(name, name.replace("_", " "))
            rows.append({"name": label.replace("{}", run.positive),
                         "mean": run.metrics[name], "sd": run.sd.get(name),
                         "seed_sd": run.seed_sd.get(name),
                         "interval": intervals.get(name),
                         "digits": decimals(*intervals.get(name, run.interval))})  # fmt: skip
    return rows


def _shown(scores: list[ClassScore]) -> list[ClassScore]:
    """Of many classes those with the lowest F1, in their order."""
    if len(scores) <= MANY_CLASSES:
        return scores
    lowest = sorted(range(len(scores)), key=lambda place: scores[place].f1)[:MANY_CLASSES]
    return [scores[place] for place in sorted(lowest)]


def _intervals(contents: Contents) -> dict[str, tuple[float, float]]:
    """Of the metrics whose interval metrics.json does not hold."""
    design = read_design(contents.run.folder)
    if not len(contents.true) or design is None:
        return {}
    return metric_intervals(
        contents.true, contents.pred, contents.proba, contents.classes, folds=contents.fold,
        groups=contents.ids if contents.groups is None else contents.groups,
        inflation=refit_inflation(*design), positive=contents.run.positive,
    )  # fmt: skip


def _confusion(contents: Contents) -> dict[str, Any]:
    if not len(contents.true):
        return {"counts": [], "pairs": [], "shown": 0}
    found = confusion(contents)
    whole = len(found.classes) == len(contents.classes) <= 30
    return {
        "counts": found.counts.tolist() if whole else [],
        "pairs": worst_pairs(contents),
        "shown": len(found.classes),
    }


def _samples(contents: Contents, draw: Draw | None) -> dict[str, Any]:
    wrong, right = wrong_samples(contents, draw), right_samples(contents, draw)
    both = [*wrong, *right]
    return {"wrong": wrong, "right": right, "pictures": any(one.uri for one in both)} | _named(both)


def _named(samples: Sequence[Sample]) -> dict[str, Any]:
    """The classes in samples by number, and what is taken for what, the most frequent first."""
    names = sorted({name for one in samples for name in (one.true, one.pred)} - {""})
    kinds = Counter((one.true, one.pred) for one in samples if one.pred not in ("", one.true))
    return {"place": {name: number for number, name in enumerate(names)},
            "kinds": kinds.most_common(_MOST_KINDS)}  # fmt: skip


def _map(contents: Contents, draw: Draw | None, depth: Depth) -> dict[str, Any]:
    """The map of the features, as it is pointed at."""
    found = read_map(contents.run.folder)
    points = map_points(found, contents, draw, depth.pictures)
    labels = sorted({one.sample.true for one in points})
    return {
        "points": points,
        "size": MAP_SIZE,
        "look": {name: (colour(i), MARKERS.index(marker(i))) for i, name in enumerate(labels)},
        "pictures": sum(bool(one.sample.uri) for one in points),
        "untested": sum(not one.sample.pred for one in points),
        **_named([one.sample for one in points]),
    }


def _times(contents: Contents, cache: Path | None) -> list[tuple[str, float | None, str]]:
    """What took how long: (what, seconds, remark)."""
    rows: list[tuple[str, float | None, str]] = []
    for name, value in contents.run.extraction_seconds.items():
        rows.append((f"extraction, {name}", value, "once, kept in the cache"))
    fits = [f.get("fit_seconds") for f in contents.folds]
    predicts = [f.get("predict_seconds") for f in contents.folds]
    numbers = [[t for t in times if isinstance(t, int | float)] for times in (fits, predicts)]
    rows.append(("fit", sum(numbers[0]), f"{len(fits)} × {contents.run.fit_seconds:.2f} s"))
    rows.append(("predict", sum(numbers[1]), counted(contents.run.tested, "test image")))
    return rows


_FAILED_CSV = "failed.csv"  # written by the cache, beside images.csv


@dataclass(frozen=True)
class DataCard:
    """Counts over all images of the data set, or over the tested ones where only those are known.

    Attributes
    ----------
    whole : bool
        Whether the manifest was at hand.
    splits : list of str
        The columns of `counts`.
    counts : dict of str to list of int
        Class -> images in each split.
    groups : int
        Different groups; 0 without any.
    duplicates : int
        Images that repeat the bytes of another.
    coverage : Coverage or None
        How many have a vector; None if only the tested images are known.
    conflicts : int
        Contents that come with two labels.
    failed : list of (id, problem)
    """

    whole: bool
    splits: list[str]
    counts: dict[str, list[int]]
    groups: int = 0
    duplicates: int = 0
    coverage: Coverage | None = None
    conflicts: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Images in all."""
        return sum(map(sum, self.counts.values()))


def data_card(contents: Contents, images: Images | None, folder: Path | None) -> DataCard:
    """Count.

    Parameters
    ----------
    contents : Contents
    images : Images, optional
        The manifest; without it only the tested rows are counted.
    folder : Path, optional
        The data set's folder in the cache, where failed.csv is.
    """
    if images is None:
        tested = Counter(contents.true.tolist())
        return DataCard(False, ["tested"], {name: [n] for name, n in sorted(tested.items())})
    failed = [] if folder is None else read_failed(folder)
    broken = {id_ for id_, _ in failed}
    failed = [(without_place(id_), without_places(problem)) for id_, problem in failed]
    bad = np.array([id_ in broken for id_ in images.ids.tolist()], np.bool_)
    labels, split = images.labels.tolist(), images.split.tolist()
    splits = [name for name in (*SPLITS, "") if name in set(split)]
    table = Counter(zip(labels, split, strict=True))
    content, label_of = factorize(images.sha256), factorize(images.labels)  # (n,), (n,)
    kinds = int(label_of.max(initial=0)) + 1
    named = np.unique(content * kinds + label_of) // kinds  # each content once for each label
    return DataCard(
        whole=True,
        splits=[name or "images" for name in splits],
        counts={label: [table[label, name] for name in splits] for label in sorted(set(labels))},
        groups=len(set(images.groups.tolist()) - {""}),
        duplicates=len(images) - len(np.unique(content)),
        conflicts=int((np.bincount(named) > 1).sum()),
        failed=failed,
        coverage=Coverage.of(images, ~bad, set(images.sha256[bad].tolist())),
    )


def read_failed(folder: Path) -> list[tuple[str, str]]:
    """The images of a data set's folder that could not be decoded, and why; none where unknown."""
    try:
        with regular(folder / _FAILED_CSV).open(newline="", encoding="utf-8") as file:
            return [
                (read_cell(row["id"]), read_cell(row["problem"])) for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []
