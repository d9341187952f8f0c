"""Extract: one pass over the images, every backbone's missing vectors into the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError
from featcache.extraction.backbone import PENULTIMATE, Backbone, open_backbones
from featcache.extraction.engine import Engine, Network, open_engine
from featcache.extraction.loading import Problem, count_workers, load_batches
from featcache.images.manifest import Images
from featcache.images.sources import open_images
from featcache.store.cache import Cache, positions
from featcache.store.features import Features
from featcache.store.file import Digests, FeatureFile, to_digests
from featcache.store.key import Key

log = logging.getLogger("featcache")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What extraction did for one backbone.

    Attributes
    ----------
    backbone : str
    path : Path
        The feature file.
    key : Key
    rows : int
        Distinct images with a vector in the file now.
    computed : int
        Forward passes: images embedded in this run.
    """

    backbone: str
    path: Path
    key: Key
    rows: int
    computed: int


@dataclass
class Report:
    """What an extraction did, and where the time went.

    Attributes
    ----------
    data : str
    images : int
    outcomes : list of Outcome
    failed : dict of id to problem
        Images without a vector.
    seconds : dict
        "total"; of the main thread "wait" (for decoded images), "compute", "write"; and "read"
        and "decode", summed over the loading threads, which work beside it.
    """

    data: str
    images: int
    outcomes: list[Outcome] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("total", "wait", "compute", "write", "read", "decode"), 0.0
        )
    )

    def time_line(self) -> str:
        """One line: how many images a second, and where the time went."""
        total = self.seconds["total"]
        computed = max((done.computed for done in self.outcomes), default=0)
        if not computed:
            return f"no forward pass, {total:.1f} s"
        shares = ", ".join(
            f"{name} {self.seconds[part] / total:.0%}"
            for name, part in (
                ("waiting for images", "wait"), ("computing", "compute"), ("writing", "write"),
            )
        )  # fmt: skip
        return (
            f"{computed:,} images in {total:.1f} s ({computed / total:,.1f}/s): {shares}; "
            f"beside it the loading threads spent {self.seconds['read']:.1f} s reading and "
            f"{self.seconds['decode']:.1f} s decoding"
        )


def extract(
    data: str | Path | Images = "digits",
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = "resnet18",
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    layer: str = PENULTIMATE,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    cache: str | Path = "cache",
    wait: bool = False,
    progress: Progress | None = None,
) -> Features:
    """Embed images with one or several backbones, and load the vectors.

    What the cache holds already is not computed again. Parameters are those of
    `fill_cache`.

    Returns
    -------
    Features
        One block for each backbone, in the order named.
    """
    images = open_images(data, cache=cache)
    report = fill_cache(
        images, backbone=backbone, weights=weights, weights_dir=weights_dir, layer=layer,
        image_size=image_size, device=device, precision=precision, engine=engine,
        batch_size=batch_size, workers=workers, cache=cache, wait=wait, progress=progress,
    )  # fmt: skip
    store = Cache(cache)
    wanted = [f"{done.key.backbone}@{done.key.digest}" for done in report.outcomes]
    return store.features(images, store.choose(images.name, wanted))


def fill_cache(
    images: Images,
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = "resnet18",
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    layer: str = PENULTIMATE,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    cache: str | Path = "cache",
    wait: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compute what the cache lacks, in one pass over the images.

    Parameters
    ----------
    images : Images
    backbone : str, Backbone, or several
        Names in `BACKBONES`, or objects of your own.
    weights : str, default "auto"
        "auto", a tag, a file, or "random[:SEED]".
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).
    layer : str, default "penultimate"
        Or the name of a module of the network.
    image_size : int, optional
        Side of the square that the network sees, in pixels.
    device : str, default "auto"
        "auto", "cpu", "cuda" or "cuda:1".
    precision : str, default "auto"
        "auto", "fp32", "bf16" or "fp16".
    engine : str, default "auto"
        "auto" or "eager".
    batch_size : int or "auto"
        Images in a forward pass.
    workers : int or "auto"
        Threads that read and decode.
    cache : str or Path, default "cache"
        The cache folder.
    wait : bool, default False
        Wait while another process writes the same file, rather than raise CacheBusy.
    progress : callable, optional
        Called with the images done and the images to do.

    Raises
    ------
    WeightsError, CacheBusy, CacheRefused
    DataError
        Where not one image could be embedded.
    """
    start = perf_counter()
    backbones = open_backbones(
        backbone, weights=weights, weights_dir=weights_dir, layer=layer, image_size=image_size
    )
    runner = open_engine(device, precision, engine, batch_size)
    threads = count_workers(workers)
    store = Cache(cache)
    report = Report(images.name, len(images))
    content = _Content(images, store)
    store.note_images(images)
    with ExitStack() as stack:
        jobs = []
        for one in backbones:
            job = _Job(one, runner, store, content)
            if job.missing():
                job.start(stack, wait)
                jobs.append(job)
        _run(jobs, content, threads, runner.batch_size, report, progress)
        for job in jobs:
            job.finish(content, report)
    content.note_failed(report)
    for one in backbones:
        report.outcomes.append(_outcome(one, runner, store, images.name, jobs))
    report.seconds["total"] = perf_counter() - start
    return report


class _Content:
    """The distinct contents of a manifest, and those known to be broken."""

    def __init__(self, images: Images, store: Cache) -> None:
        self.images = images
        self._store = store
        distinct = images.distinct()
        hopeless = store.failed(images.name)
        bad = np.array([str(s) in hopeless for s in images.sha256[distinct]], np.bool_)
        self.problems: dict[int, Problem] = {
            int(row): Problem("decode", hopeless[str(images.sha256[row])])
            for row in distinct[bad]
        }  # fmt: skip
        self.rows: NDArray[np.intp] = distinct[~bad]
        self.digests: Digests = to_digests(images.sha256[self.rows])

    def note_failed(self, report: Report) -> None:
        """Write failed.csv, and the report's list, with a line for every image of the content."""
        broken = {str(self.images.sha256[row]): p for row, p in self.problems.items()}
        rows = {
            row: broken[sha256]
            for row, sha256 in enumerate(self.images.sha256.tolist())
            if sha256 in broken
        }
        self._store.note_failed(self.images, {row: (p.kind, p.text) for row, p in rows.items()})
        report.failed = {str(self.images.ids[row]): p.text for row, p in rows.items()}


class _Job:
    """One backbone's file while it is being filled."""

    def __init__(self, backbone: Backbone, engine: Engine, store: Cache, content: _Content) -> None:
        self.backbone = backbone
        self.key = backbone.key(engine.precision)
        self.computed = 0
        self._engine = engine
        self._store = store
        self._content = content
        self._data = content.images.name
        self._network: Network | None = None
        self._file: FeatureFile | None = None
        self._row_of: dict[int, int] = {}

    def missing(self) -> bool:
        """Whether any content has no vector."""
        return bool(self._store.missing(self._data, self.key, self._content.digests).any())

    def start(self, stack: ExitStack, wait: bool) -> None:
        """Lock the file, open it, and note which rows it still needs."""
        stack.enter_context(self._store.lock(self._data, self.key, wait))
        if not self.missing():  # another process has finished it in the meantime
            return
        dim = self._store.known_dim(self.key)
        if dim is None:
            dim = self.network.dim
        self._file = stack.enter_context(
            self._store.begin(self._data, self.key, self._content.digests, dim)
        )
        rows = positions(self._content.digests, self._file.digests)
        todo = ~self._file.done()[rows]
        self._row_of = dict(
            zip(self._content.rows[todo].tolist(), rows[todo].tolist(), strict=True)
        )

    @property
    def network(self) -> Network:
        """Built when the first image needs it."""
        if self._network is None:
            self._network = self._engine.load(self.backbone)
        return self._network

    @property
    def pending(self) -> list[int]:
        """Rows of the manifest that are not in the file yet."""
        return list(self._row_of)

    def embed(self, rows: NDArray[np.intp], pixels: NDArray[np.uint8], report: Report) -> None:
        """Embed and write those rows of a batch that this file needs."""
        mine = np.array([row in self._row_of for row in rows.tolist()], np.bool_)
        if not mine.any() or self._file is None:
            return
        start = perf_counter()
        vectors = self.network.run(pixels if mine.all() else pixels[mine])
        middle = perf_counter()
        where = np.array([self._row_of.pop(row) for row in rows[mine].tolist()], np.intp)
        self._file.write(where, vectors)
        self.computed += len(where)
        report.seconds["compute"] += middle - start
        report.seconds["write"] += perf_counter() - middle

    def finish(self, content: _Content, report: Report) -> None:
        """Put the finished file in its place, without the images that could not be embedded."""
        if self._file is None:
            return
        leave_out = ~self._file.done()
        if leave_out.all():
            content.note_failed(report)
            text = next(iter(report.failed.values()))
            raise DataError(
                f"not one of {len(content.images)} images could be embedded (the first: {text})",
                f"Look at {self._file.path.parent / 'failed.csv'}.",
            )
        self._file.annotate({**self._engine.describe(), "seconds": report.seconds["compute"]})
        self._file.finish(self._store.path(self._data, self.key), leave_out)


def _run(
    jobs: Sequence[_Job],
    content: _Content,
    threads: int,
    batch_size: int,
    report: Report,
    progress: Progress | None,
) -> None:
    pending = np.array(sorted({row for job in jobs for row in job.pending}), np.intp)
    if not len(pending):
        return
    preprocesses = list(dict.fromkeys(job.backbone.preprocess for job in jobs))
    batches = load_batches(content.images, pending, preprocesses, batch_size, threads)
    done, start = 0, perf_counter()
    for batch in batches:
        report.seconds["wait"] += perf_counter() - start
        report.seconds["read"] += batch.read
        report.seconds["decode"] += batch.decode
        content.problems.update(batch.problems)
        for job in jobs:
            job.embed(batch.rows, batch.pixels[job.backbone.preprocess], report)
        done += len(batch.rows) + len(batch.problems)
        if progress is not None:
            progress(done, len(pending))
        start = perf_counter()


def _outcome(
    backbone: Backbone, engine: Engine, store: Cache, data: str, jobs: Sequence[_Job]
) -> Outcome:
    key = backbone.key(engine.precision)
    path = store.path(data, key)
    computed = sum(job.computed for job in jobs if job.key == key)
    with FeatureFile(path) as file:
        return Outcome(backbone.name, path, key, len(file), computed)
