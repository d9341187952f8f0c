"""Extract: one pass over the images, every backbone's missing vectors into the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from featcache.display import notebook_progress
from featcache.errors import DataError, RecipeError, counted
from featcache.extraction.backbone import PENULTIMATE, Backbone, BackboneOptions
from featcache.extraction.batch import DecodeBudget, Problem, in_turn
from featcache.extraction.engine import Engine, open_engine, resolve_engines
from featcache.extraction.loader import Loader, choose_loading
from featcache.extraction.network import INT8
from featcache.extraction.quantising import calibrated
from featcache.extraction.registry import Names, open_backbones
from featcache.extraction.report import Report
from featcache.extraction.task import ExtractionTask, FileInProgress, Progress, fill, pending_rows
from featcache.extraction.unique_images import UniqueImages
from featcache.images.decode import BadImage, decode
from featcache.images.dhash import BYTES, ENOUGH, Hashes
from featcache.images.dhash import dhash as hash_of
from featcache.images.manifest import Images, has_changed
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.features import Features


@dataclass(frozen=True)
class Request:
    """What is to be embedded with, and how: plain enough to be sent to another process."""

    backbone: Names
    options: BackboneOptions
    view: str | Sequence[str]
    device: str
    precision: str
    engine: str
    batch_size: int | str
    workers: int | str

    def open(self) -> list[Backbone]:
        """The backbones; then each again for every view."""
        plain = open_backbones(self.backbone, self.options)
        return plain + with_views(plain, self.view)

    def open_engine(self) -> Engine:
        """What their networks run on; a precision of "auto" is still to be resolved."""
        return open_engine(self.device, self.precision, self.engine, self.batch_size)


@dataclass(frozen=True)
class ExtractionContext:
    """What an extraction has to embed.

    Attributes
    ----------
    tasks : sequence of ExtractionTask
        One for each backbone and view; `open_files` starts those that miss rows.
    unique : UniqueImages
    cache : Cache
    request : Request
    loader : Loader
    limit : float
        How many images may fail.
    report : Report
        Its seconds are added to.
    progress : callable, optional
        Called with the images done and the images to do.
    """

    tasks: Sequence[ExtractionTask]
    unique: UniqueImages
    cache: Cache
    request: Request
    loader: Loader
    limit: float
    report: Report
    progress: Progress | None = None

    @property
    def files(self) -> list[FileInProgress]:
        """The files that need rows, in the order of the tasks."""
        files = [task.file for task in self.tasks if task.file is not None]
        return [file for file in files if file.pending]

    def pending(self) -> list[int]:
        """Rows of the manifest that any file needs, sorted."""
        return pending_rows(self.files)

    def open_files(self, stack: ExitStack, wait: bool, ahead: bool) -> None:
        """Lock and open the files that miss rows, until the stack is closed.

        With `ahead` the images of a new data set are loaded while its networks are built.
        """
        if ahead and all(task.is_new() for task in self.tasks):
            stack.callback(self.loader.close)
            wanted = dict.fromkeys(task.backbone.preprocess for task in self.tasks)
            self.loader.begin(self.unique.rows, list(wanted))
        # Always in one order, so that two processes can't wait for each other's locks.
        for task in sorted(self.tasks, key=lambda task: task.key.stem):
            if task.missing():
                task.start(stack, wait)

    def note_hashes(self) -> None:
        """Keep the dHash of each image that was decoded."""
        if not self.report.hashes:
            return
        images = self.unique.images
        dhash = np.zeros((len(images), BYTES), np.uint8)
        for rows, hashes in self.report.hashes:
            dhash[rows] = hashes
        self.cache.note_images(replace(images, dhash=dhash))

    def hash_rest(self) -> None:
        """Decode the images whose dHash is not known, and keep it; broken ones are left."""
        images, budget = self.unique.images, DecodeBudget()
        known = self.cache.dhash(images)
        todo = self.unique.rows
        if len(known):
            todo = todo[~known[todo].any(axis=1)]

        def hashed(row: int) -> Hashes:
            try:
                content = images.read(row)
                if has_changed(content, images.sha256[row]):
                    return np.zeros(BYTES, np.uint8)
                return in_turn(
                    lambda reserve: hash_of(decode(content, at_least=ENOUGH, reserve=reserve)),
                    budget,
                )
            except (BadImage, OSError, MemoryError):
                return np.zeros(BYTES, np.uint8)

        with ThreadPoolExecutor(self.loader.loading.workers) as pool:
            found = [*pool.map(hashed, todo.tolist())]
        if found:
            self.report.hashes.append((todo, np.stack(found)))
            self.note_hashes()

    def failed(self, problems: Mapping[int, Problem]) -> None:
        """Note images that could not be embedded.

        Raises
        ------
        DataError
            If there are more than allowed.
        """
        self.unique.problems.update(problems)
        if len(self.unique.problems) + len(self.unique.images.absent) > self.limit:
            self.unique.note_failed(self.report)
            raise DataError(
                f"{counted(len(self.report.failed), 'image')} failed, more than "
                "--max-failures allows",
                f"They are listed in {self.unique.failed_csv}; what is done is kept.",
            )


Embed = Callable[[ExtractionContext], None]


def embed_here(context: ExtractionContext) -> None:
    """Embed in this process."""
    fill(context.files, context.loader, context.report, context.failed, context.progress)


def extract(
    data: str | Path | Images = "digits",
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = "resnet18",
    cache: str | Path = "cache",
    **options: Any,
) -> Features:
    """Embed images with one or several backbones, and load the vectors.

    What the cache holds already is not computed again.

    Parameters
    ----------
    data : str, Path or Images, default "digits"
        See `open_images`.
    backbone : str, Backbone, or several, default "resnet18"
    cache : str or Path, default "cache"
    **options
        Passed on to `fill_cache`, which has `weights`, `image_size`, `device` and others.

    Returns
    -------
    Features
        One block for each backbone, in the order of their names.
    """
    images = open_images(data, cache=cache)
    report = fill_cache(images, backbone=backbone, cache=cache, **options)
    store = Cache(cache)
    return store.features(images, store.choose(images.name, report.selectors))


def fill_cache(
    images: Images,
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = "resnet18",
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    layer: str = PENULTIMATE,
    image_size: int | None = None,
    colour: str | None = None,
    filter: str | None = None,
    scale: str | None = None,
    pool: str = "own",
    layers: str = "last",
    view: str | Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    cache: str | Path = "cache",
    wait: bool = False,
    max_failures: int | str | None = None,
    retry_failed: bool = False,
    dhash: bool = False,
    progress: Progress | None = None,
    embed: Embed = embed_here,
) -> Report:
    """Compute what the cache lacks, in one pass over the images.

    Parameters
    ----------
    images : Images
    backbone : str, Backbone, or several
        Names in `BACKBONES`, with options of their own if they have some
        (`vit_b_16:size=384:colour=hsv`, see `featcache.store.spec`), or objects of your own. One
        name may come again with other options.
    weights : str, default "auto"
        "auto", a tag, a file, or "random[:SEED]".
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).
    layer : str, default "penultimate"
        Or the name of a module of the network.
    image_size : int, optional
        Side of the square that the network sees, in pixels.
    colour : str, optional
        "rgb", "hsv", "lab", "ycbcr" or "grey": what the network sees of the pixels.
    filter : str, optional
        For the whole image, before it is resized: "equalise", "gaussian-SIGMA", "log-SIGMA",
        several joined by "+", or "none".
    scale : str, optional
        "own", the normalisation that the weights were trained with, or "0-1", none beyond that.
    pool, layers : str
        How the last map or tokens become one vector, and whether the class tokens of several
        blocks are joined, see `open_backbone`.
    view : str, or several
        Names in `VIEWS`: further files, of the images flipped or turned.
    device : str, default "auto"
        "auto", "cpu", "cuda" or "cuda:1".
    precision : str, default "auto"
        "auto", "fp32", "bf16", "fp16" or "int8"; "auto" is the first precision in which the device
        is fast and that the network bears, see `resolve_engine`. "int8" quantises the network on a
        sample of the images, on the processor; it needs the extra of that name.
    engine : str, default "auto"
        "auto", "eager", "compile" or "openvino".
    batch_size : int or "auto"
        Images in a forward pass.
    workers : int or "auto"
        Threads that read and decode; processes if the device is a GPU and the images are files.
    cache : str or Path, default "cache"
        The cache folder.
    wait : bool, default False
        Wait while another process writes the same file, rather than raise CacheBusy.
    max_failures : int or str, optional
        Stop when more images than this can't be embedded: a number, or a share as "5%".
    retry_failed : bool, default False
        Try images again that an earlier run could not decode, though their bytes are the same.
    dhash : bool, default False
        Decode also those images whose vectors are there and whose dHash is not: those of earlier
        versions, and copied from other data sets.
    progress : callable, optional
        Called with the images done and the images to do; by default a bar, in a notebook.
    embed : callable, optional
        Does the work in place of this process, see `featcache.scaling.executors`.

    Raises
    ------
    WeightsError, CacheBusy, CacheRefused
    DataError
        If not one image could be embedded, or more than `max_failures` could not.
    """
    start = perf_counter()
    options = BackboneOptions(
        weights, weights_dir, layer, image_size, colour, filter, scale, pool, layers
    )
    request = Request(backbone, options, view, device, precision, engine, batch_size, workers)
    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(notebook_progress("images"))
        context = _plan(request, images, cache, retry_failed, max_failures, progress)
        report = context.report
        context.open_files(stack, wait, ahead=embed is embed_here)
        context.cache.note_images(images)  # once readers see which images are being embedded
        report.seconds["prepare"] = perf_counter() - start
        try:
            embed(context)
        finally:  # what is done is kept
            context.note_hashes()
        if dhash:
            context.hash_rest()
        for task in context.tasks:
            task.finish(report)
    context.unique.note_failed(report)
    report.outcomes += [task.outcome() for task in context.tasks]
    report.seconds["total"] = perf_counter() - start
    return report


def _plan(
    request: Request,
    images: Images,
    folder: str | Path,
    retry_failed: bool,
    max_failures: int | str | None,
    progress: Progress | None,
) -> ExtractionContext:
    """Open the backbones and the cache, and settle how each network runs on these images."""
    backbones = request.open()
    engine = request.open_engine()
    loading = choose_loading(images, engine.device, request.workers)
    cache = Cache(folder)
    report = Report(images.name, len(images))
    unique = UniqueImages(images, cache, retry_failed)
    engine = engine.for_set(unique.count)
    limit = _most_failures(max_failures, len(unique.rows) + len(images.absent))
    if not cache.has_images(images.name):  # kept from here on: what took long to digest
        cache.note_images(images)
    if not len(unique.rows):
        raise unique.none_left(report)
    loader = Loader(images, engine.batch_size, loading)
    if engine.precision == INT8:
        backbones = calibrated(backbones, cache, unique)
    engines = resolve_engines(engine, backbones, cache, unique)
    tasks = [ExtractionTask(*pair, cache, unique) for pair in zip(backbones, engines, strict=True)]
    context = ExtractionContext(tasks, unique, cache, request, loader, limit, report, progress)
    if images.absent:
        context.failed({})
    return context


def with_views(backbones: Sequence[Backbone], view: str | Sequence[str]) -> list[Backbone]:
    """Each backbone once for every view besides the plain one."""
    names = [view] if isinstance(view, str) else view
    others = dict.fromkeys(name for name in names if name != "none")
    return [
        replace(backbone, preprocess=replace(backbone.preprocess, view=name))
        for name in others
        for backbone in backbones
    ]


def _most_failures(value: int | str | None, images: int) -> float:
    """How many failures `max_failures` allows."""
    if value is None:
        return math.inf
    number, percent, rest = str(value).partition("%")
    try:
        amount = float(number)
    except ValueError:
        amount = -1.0
    if amount < 0 or rest or not math.isfinite(amount):
        raise RecipeError(f"max failures {value!r}", "Give a number, or a share such as 5%.")
    return amount * images / 100 if percent else amount
