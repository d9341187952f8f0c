"""Job: one backbone's file while it is being filled."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.backbone import Backbone
from featcache.extraction.content import Content
from featcache.extraction.drift import refuse_drift
from featcache.extraction.engine import AUTO
from featcache.extraction.filling import Filling
from featcache.extraction.network import Network
from featcache.extraction.precision import Settled
from featcache.extraction.report import Outcome, Report
from featcache.extraction.sample import spread
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, positions, write_trained_on
from featcache.store.locking import begin, delete_parts, lock, recorded

_CHECKED = 4  # stored rows embedded again before a file is extended


class Job:
    """One backbone's file while it is being filled."""

    def __init__(
        self, backbone: Backbone, settled: Settled, store: Cache, content: Content
    ) -> None:
        self.backbone = backbone
        self.key = backbone.key(settled.engine.precision)
        self.filling: Filling | None = None
        self._engine = settled.engine
        self._fidelity = settled.fidelity
        self._store = store
        self._content = content
        self._data = content.images.name
        self._network = settled.network

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
        file = stack.enter_context(
            begin(self._store, self._data, self.key, self._content.digests, dim)
        )
        rows = positions(self._content.digests, file.digests)
        todo = ~file.done()[rows]
        row_of = dict(zip(self._content.rows[todo].tolist(), rows[todo].tolist(), strict=True))
        if todo.any() and not todo.all():
            self._refuse_drift(file, self._content.rows[~todo], rows[~todo])
        if todo.any():
            file.annotate(self._describe())
        if self.backbone.trained_on:  # before the first row: no kill leaves rows without it
            write_trained_on(file.path, self.backbone.trained_on)
        self.filling = Filling(file, row_of, self.backbone.preprocess, lambda: self.network)

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

    def release(self) -> None:
        """Let go of the network's memory; it is built again if it is needed."""
        self._network = None

    def finish(self, content: Content, report: Report) -> None:
        """Put the finished file in its place, without the images that could not be embedded."""
        if self.filling is None:
            return
        file = self.filling.file
        leave_out = ~file.done()
        if leave_out.all():
            raise content.none_left(report)
        report.seconds["compute"] += self.filling.seconds
        if self.filling.computed:
            before = float(file.attributes.get("seconds", 0.0))
            file.annotate({"seconds": before + self.filling.seconds})
        file.finish(self._store.path(self._data, self.key), leave_out)
        delete_parts(self._store, self._data, self.key)

    def outcome(self) -> Outcome:
        """What the finished file holds now."""
        path = self._store.path(self._data, self.key)
        computed = self.filling.computed if self.filling else 0
        with FeatureFile(path) as file:
            return Outcome(self.backbone.name, path, self.key, len(file), computed)
