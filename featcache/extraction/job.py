"""Job: one backbone's file while it is being filled."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.backbone import Backbone
from featcache.extraction.content import Content
from featcache.extraction.drift import refuse_drift
from featcache.extraction.engine import Engine, Network
from featcache.extraction.report import Outcome, Report
from featcache.store.cache import Cache, positions
from featcache.store.file import FeatureFile
from featcache.store.writing import begin, lock

_CHECKED = 4  # stored rows embedded again before a file is extended


class Job:
    """One backbone's file while it is being filled."""

    def __init__(self, backbone: Backbone, engine: Engine, store: Cache, content: Content) -> None:
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
        stack.enter_context(lock(self._store, self._data, self.key, wait))
        if not self.missing():  # another process has finished it in the meantime
            return
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
            self._file.annotate(self._engine.describe())

    def _refuse_drift(
        self, file: FeatureFile, images: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> None:
        """Before new rows join old ones: do a few of the old ones still come out the same?"""
        few = np.linspace(0, len(rows) - 1, min(_CHECKED, len(rows))).astype(np.intp)
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
            now=self._engine.describe(),
        )

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

    def finish(self, content: Content, report: Report) -> None:
        """Put the finished file in its place, without the images that could not be embedded."""
        if self._file is None:
            return
        leave_out = ~self._file.done()
        if leave_out.all():
            raise content.none_left(report)
        if self.computed:
            self._file.annotate({"seconds": report.seconds["compute"]})
        self._file.finish(self._store.path(self._data, self.key), leave_out)

    def outcome(self) -> Outcome:
        """What the finished file holds now."""
        path = self._store.path(self._data, self.key)
        with FeatureFile(path) as file:
            return Outcome(self.backbone.name, path, self.key, len(file), self.computed)
