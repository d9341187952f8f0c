"""Job: one backbone's file while it is being filled."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.backbone import Backbone
from featcache.extraction.content import Content
from featcache.extraction.drift import refuse_drift
from featcache.extraction.engine import AUTO
from featcache.extraction.network import Network
from featcache.extraction.precision import Settled
from featcache.extraction.report import Outcome, Report
from featcache.extraction.sample import spread
from featcache.extraction.writer import Writer
from featcache.store.cache import Cache, positions
from featcache.store.file import FeatureFile
from featcache.store.trained_on import write_trained_on
from featcache.store.writing import begin, lock, recorded

_CHECKED = 4  # stored rows embedded again before a file is extended


class Job:
    """One backbone's file while it is being filled."""

    def __init__(
        self, backbone: Backbone, settled: Settled, store: Cache, content: Content
    ) -> None:
        self.backbone = backbone
        self.key = backbone.key(settled.engine.precision)
        self.computed = 0
        self.seconds = 0.0  # of computing
        self._engine = settled.engine
        self._fidelity = settled.fidelity
        self._store = store
        self._content = content
        self._data = content.images.name
        self._network = settled.network
        self._file: FeatureFile | None = None
        self._row_of: dict[int, int] = {}

    def missing(self) -> bool:
        """Whether any content has no vector."""
        return bool(self._missing())

    def _missing(self) -> int:
        return int(self._store.missing(self._data, self.key, self._content.digests).sum())

    def start(self, stack: ExitStack, wait: bool) -> None:
        """Lock the file, open it, and note which rows it still needs."""
        stack.enter_context(lock(self._store, self._data, self.key, wait))
        if not self.missing():  # another process has finished it in the meantime
            return
        self._choose_engine()
        dim = self._store.known_dim(self.key)
        if dim is None:
            dim = self.network.dim
        self._file = stack.enter_context(
            begin(self._store, self._data, self.key, self._content.digests, dim)
        )
        rows = positions(self._content.digests, self._file.digests)
        todo = ~self._file.done()[rows]
        self._row_of = dict(
            zip(self._content.rows[todo].tolist(), rows[todo].tolist(), strict=True)
        )
        if todo.any() and not todo.all():
            self._refuse_drift(self._file, self._content.rows[~todo], rows[~todo])
        if todo.any():
            self._file.annotate(self._describe())
        if self.backbone.trained_on:  # before the first row: no kill leaves rows without it
            write_trained_on(self._file.path, self.backbone.trained_on)

    def _refuse_drift(
        self, file: FeatureFile, images: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> None:
        """Before new rows join old ones: do a few of the old ones still come out the same?"""
        few = spread(np.arange(len(rows)), _CHECKED)
        stored = np.empty((len(few), file.dim), np.float32)
        file.read(rows[few], stored)
        refuse_drift(
            self.network,
            self.backbone.preprocess,
            self._content.images,
            images[few],
            stored,
            precision=self.key.precision,
            where=str(self._store.path(self._data, self.key)),
            then=file.attributes,
            now=self._describe(),
        )

    def _choose_engine(self) -> None:
        """All rows of a file by one engine: the one that began it, where it is at hand."""
        if self._engine.kind == AUTO:
            begun = recorded(self._store, self._data, self.key).get("engine")
            kind = self._engine.for_images(self._missing(), begun)
            self._engine = replace(self._engine, kind=kind)
        if self._network is not None and self._network.kind != self._engine.kind:
            self._network = None

    def _describe(self) -> dict[str, str | float]:
        facts: dict[str, str | float] = {**self._engine.describe(), "engine": self.network.kind}
        if self._fidelity is not None:
            facts["canary"] = self._fidelity
        return facts

    @property
    def network(self) -> Network:
        """Built when the first image needs it."""
        if self._network is None:
            self._network = self._engine.load(self.backbone)
        return self._network

    @property
    def pending(self) -> Collection[int]:
        """Rows of the manifest that are not in the file yet."""
        return self._row_of.keys()

    def embed(
        self, rows: NDArray[np.intp], pixels: NDArray[np.uint8], writer: Writer, report: Report
    ) -> None:
        """Embed those rows of a batch that this file needs; the writer then writes them."""
        mine = np.array([row in self._row_of for row in rows.tolist()], np.bool_)
        file = self._file
        if not mine.any() or file is None:
            return
        start = perf_counter()
        vectors = self.network.start(pixels if mine.all() else pixels[mine])
        where = np.array([self._row_of.pop(row) for row in rows[mine].tolist()], np.intp)
        self.seconds += perf_counter() - start

        def write() -> None:
            start = perf_counter()
            done = vectors()  # a GPU may still be at it
            middle = perf_counter()
            file.write(where, done)
            self.computed += len(where)
            self.seconds += middle - start
            report.seconds["write"] += perf_counter() - middle

        start = perf_counter()
        writer.submit(write)
        report.seconds["blocked"] += perf_counter() - start

    def finish(self, content: Content, report: Report) -> None:
        """Put the finished file in its place, without the images that could not be embedded."""
        if self._file is None:
            return
        leave_out = ~self._file.done()
        if leave_out.all():
            raise content.none_left(report)
        report.seconds["compute"] += self.seconds
        if self.computed:
            before = float(self._file.attributes.get("seconds", 0.0))
            self._file.annotate({"seconds": before + self.seconds})
        self._file.finish(self._store.path(self._data, self.key), leave_out)

    def outcome(self) -> Outcome:
        """What the finished file holds now."""
        path = self._store.path(self._data, self.key)
        with FeatureFile(path) as file:
            return Outcome(self.backbone.name, path, self.key, len(file), self.computed)
