"""Task: one backbone's feature file while it is being filled, and the pass that fills it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused
from featcache.extraction.backbone import Backbone
from featcache.extraction.batch import Decoded, Problem
from featcache.extraction.consistency import compare_with_fp32, refuse_inconsistency
from featcache.extraction.engine import AUTO, ResolvedEngine
from featcache.extraction.loader import Loader, spread
from featcache.extraction.network import INT8, Network
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.extraction.report import Outcome, Report
from featcache.extraction.unique_images import UniqueImages
from featcache.store.cache import Cache
from featcache.store.feature_file import (
    FeatureFile,
    positions,
    to_hex,
    write_quantised,
    write_trained_on,
)
from featcache.store.locking import begin, delete_parts, find_parts, lock, recorded

_CHECKED = 4  # stored rows embedded again before a file is extended
_SAMPLE = 16  # images of a new file that are embedded in fp32 too


class ExtractionTask:
    """One backbone's extraction: its key, its network, and its file if that misses rows."""

    def __init__(
        self, backbone: Backbone, resolved: ResolvedEngine, cache: Cache, unique: UniqueImages
    ) -> None:
        self.backbone = backbone
        self.key = backbone.key(resolved.engine.precision)
        self.file: FileInProgress | None = None
        self._engine = resolved.engine
        self._canary = resolved.canary
        self._cache = cache
        self._unique = unique
        self._data = unique.images.name
        self._network = resolved.network
        self._compared = False

    def missing(self) -> bool:
        """Whether any image has no vector."""
        return bool(self._missing())

    def _missing(self) -> int:
        return int(self._cache.missing(self._data, self.key, self._unique.digests).sum())

    def is_new(self) -> bool:
        """Whether no image has a vector of this key yet, anywhere in the cache."""
        return not (
            self._cache.partial(self._data, self.key).exists()
            or find_parts(self._cache, self._data, self.key)
            or any(self._cache.folder.glob(f"*/{self.key.stem}.h5"))
        )

    def start(self, stack: ExitStack, wait: bool) -> None:
        """Lock the file, open it, and note which rows it still needs."""
        stack.enter_context(lock(self._cache, self._data, self.key, wait))
        if not self.missing():  # another process has finished it in the meantime
            return
        begun = recorded(self._cache, self._data, self.key)
        self._choose_engine(begun.get("engine"))
        self._compared = "fidelity" in begun
        quantised = self.backbone.quantised  # read before a file that holds it is replaced
        network = quantised() if quantised and self.key.calibration else None
        dim = self._cache.known_dim(self.key)
        if dim is None:
            dim = self.network.dim
        file = stack.enter_context(
            begin(self._cache, self._data, self.key, self._unique.digests, dim)
        )
        rows = positions(self._unique.digests, file.digests)
        todo = ~file.done()[rows]
        row_of = dict(zip(self._unique.rows[todo].tolist(), rows[todo].tolist(), strict=True))
        if network is not None:  # before the first row: each row is this network's
            write_quantised(file.path, network)
        if todo.any() and not todo.all():
            self._refuse_inconsistency(file, self._unique.rows[~todo], rows[~todo])
        if todo.any():
            file.annotate(self._describe())
        if self.backbone.trained_on:  # before the first row: no kill leaves rows without it
            write_trained_on(file.path, self.backbone.trained_on)
        self.file = FileInProgress(file, row_of, self.backbone.preprocess, lambda: self.network)

    def _refuse_inconsistency(
        self, file: FeatureFile, images: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> None:
        """Before new rows join old ones: do a few of the old ones still come out the same?"""
        few = spread(np.arange(len(rows)), _CHECKED)
        stored = np.empty((len(few), file.dim), np.float32)
        file.read(rows[few], stored)
        refuse_inconsistency(
            self.network,
            self.backbone.preprocess,
            self._unique.images,
            images[few],
            stored,
            precision=self.key.precision,
            where=str(self._cache.path(self._data, self.key)),
            then=file.attributes,
            now=self._describe(),
        )

    def _choose_engine(self, begun: str | None) -> None:
        """All rows of a file by one engine: the one that began it, where it is at hand."""
        if self._engine.kind == AUTO:
            kind = self._engine.for_images(self._missing(), begun)
            self._engine = replace(self._engine, kind=kind)
        if self._network is not None and self._network.kind != self._engine.kind:
            self._network = None

    def _describe(self) -> dict[str, str | float]:
        facts: dict[str, str | float] = {**self._engine.describe(), "engine": self.network.kind}
        if self._canary is not None:
            facts["canary"] = self._canary
        return facts

    @property
    def network(self) -> Network:
        """Built when the first image needs it."""
        if self._network is None:
            self._network = self._engine.load(self.backbone)
        return self._network

    def release(self) -> None:
        """Let go of the network's memory; it is built again if it is needed."""
        self._network = None

    def finish(self, report: Report) -> None:
        """Put the finished file in its place, without the images that could not be embedded."""
        if self.file is None:
            return
        features = self.file.features
        leave_out = ~features.done()
        if leave_out.all():
            raise self._unique.none_left(report)
        report.seconds["compute"] += self.file.seconds
        if self.file.computed:
            before = features.seconds
            before = 0.0 if math.isnan(before) else before
            features.annotate({"seconds": before + self.file.seconds})
            if not self._compared:
                self._compare_with_fp32(features)
        features.finish(self._cache.path(self._data, self.key), leave_out)
        delete_parts(self._cache, self._data, self.key)

    def _compare_with_fp32(self, features: FeatureFile) -> None:
        """Do these images bear the precision as the canary's do? Not asked for views of them."""
        # int8 has been compared as it was quantised.
        if self.key.precision in ("fp32", INT8) or self.backbone.preprocess.view != "none":
            return
        self.release()
        rows = positions(self._unique.digests, features.digests)
        few = spread(np.flatnonzero(features.done()[rows]), _SAMPLE)
        stored = np.empty((len(few), features.dim), np.float32)
        features.read(rows[few], stored)
        images = self._unique.rows[few]
        least = compare_with_fp32(self.backbone, self._engine, self._unique.images, images, stored)
        if least is not None:
            features.annotate({"fidelity": least})

    def outcome(self) -> Outcome:
        """What the finished file holds now."""
        path = self._cache.path(self._data, self.key)
        computed = self.file.computed if self.file else 0
        with FeatureFile(path) as file:
            return Outcome(self.backbone.name, path, self.key, len(file), computed)


Progress = Callable[[int, int], None]


class FileInProgress:
    """A feature file that is being filled.

    Parameters
    ----------
    features : FeatureFile
        Open for writing.
    row_of : dict of int to int
        For each row of the manifest that the file still needs, its row in the file.
    preprocess : Preprocess
    network : callable
        Gives the network; called when the first image needs it.

    Attributes
    ----------
    computed : int
        Images embedded so far.
    seconds : float
        Of computing.
    """

    def __init__(
        self,
        features: FeatureFile,
        row_of: dict[int, int],
        preprocess: Preprocess,
        network: Callable[[], Network],
    ) -> None:
        self.features = features
        self.preprocess = preprocess
        self.computed = 0
        self.seconds = 0.0
        self._row_of = row_of
        self._network = network

    @property
    def pending(self) -> Collection[int]:
        """Rows of the manifest that are not in the file yet."""
        return self._row_of.keys()

    def embed(
        self, rows: NDArray[np.intp], pixels: Pixels | Decoded, writer: Writer, report: Report
    ) -> None:
        """Embed those rows of a batch that this file needs; the writer then writes them."""
        mine = np.array([row in self._row_of for row in rows.tolist()], np.bool_)
        if not mine.any():
            return
        start = perf_counter()
        vectors = self._network().start(pixels if mine.all() else pixels[mine], self.preprocess)
        where = np.array([self._row_of.pop(row) for row in rows[mine].tolist()], np.intp)
        self.seconds += perf_counter() - start

        def write() -> None:
            start = perf_counter()
            done = vectors()  # a GPU may still be at it
            middle = perf_counter()
            self.features.write(where, done)
            self.computed += len(where)
            self.seconds += middle - start
            report.seconds["write"] += perf_counter() - middle

        start = perf_counter()
        writer.submit(write)
        report.seconds["blocked"] += perf_counter() - start

    def take(self, part: Path, rows: Mapping[str, int]) -> int:
        """Copy what another process has embedded; how many rows.

        Parameters
        ----------
        part : Path
            A feature file under the same key, finished or not; rows that don't agree with their
            checksum are left.
        rows : mapping of str to int
            sha256 of the images that may be in it, and their rows in the manifest.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CacheRefused
            If it is damaged, or another backbone's.
        """
        with FeatureFile(part) as source:
            if source.key != self.features.key or source.dim != self.features.dim:
                raise CacheRefused(f"{part} holds features of another key", "Delete it.")
            found = {  # one vector for each, even of a part that has two
                rows[sha256]: place
                for place, (sha256, good) in enumerate(
                    zip(to_hex(source.digests), source.good().tolist(), strict=True)
                )
                if good and rows.get(sha256) in self._row_of
            }
            if not found:
                return 0
            values = np.empty((len(found), source.dim), source.key.dtype)
            source.read(np.array([*found.values()], np.intp), values)
        self.features.write(np.array([self._row_of[row] for row in found], np.intp), values)
        for row in found:
            del self._row_of[row]
        self.computed += len(found)
        return len(found)


def pending_rows(files: Sequence[FileInProgress]) -> list[int]:
    """Rows of the manifest that any of these files needs, sorted."""
    return sorted({row for file in files for row in file.pending})


def fill(
    files: Sequence[FileInProgress],
    loader: Loader,
    report: Report,
    failed: Callable[[Mapping[int, Problem]], None],
    progress: Progress | None = None,
) -> None:
    """Embed what these files need, in one pass over the images.

    Parameters
    ----------
    files : sequence of FileInProgress
    loader : Loader
    report : Report
        Its seconds and hashes are added to.
    failed : callable
        Told of the images of each batch that could not be embedded.
    progress : callable, optional
        Called with the images done and the images to do.
    """
    unfinished = [file for file in files if file.pending]
    pending = np.array(pending_rows(unfinished), np.intp)
    if not len(pending):
        return
    preprocesses = list(dict.fromkeys(file.preprocess for file in unfinished))
    for file in unfinished:
        file.features.annotate(loader.loading.describe())
    done, start = 0, perf_counter()
    batches = loader.load(pending, preprocesses)
    with batches, Writer(_AHEAD_ON_GPU if loader.loading.pin else _AHEAD) as writer:
        for batch in batches:
            report.seconds["wait"] += perf_counter() - start
            report.seconds["read"] += batch.read
            report.seconds["decode"] += batch.decode
            failed(batch.problems)
            report.hashes.append((batch.rows, batch.dhash))
            for file in unfinished:
                if file.pending:
                    file.embed(batch.rows, batch.pixels[file.preprocess], writer, report)
            done += len(batch.rows) + len(batch.problems)
            if progress is not None:
                progress(done, len(pending))
            start = perf_counter()


_AHEAD = 1  # batches that may be on their way to the disk: a kill loses no more
_AHEAD_ON_GPU = 3  # so that it has the next one before it is done with one


class Writer:
    """Runs what it is given in order, in one thread.

    An error there is raised by a later `submit`, or when the block ends. What was submitted
    before an error or an interrupt is still written.
    """

    def __init__(self, ahead: int = _AHEAD) -> None:
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="featcache-write")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` after all that was submitted before; waits while too much is under way."""
        while len(self._waiting) >= self._ahead:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            for done in self._waiting:
                done.result()
