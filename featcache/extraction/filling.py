"""Filling: a feature file, the rows that it still needs, and the network that gives them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused
from featcache.extraction.loading import Problem, load_batches
from featcache.extraction.network import Network
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.report import Report
from featcache.extraction.writer import Writer
from featcache.images.manifest import Images
from featcache.store.feature_file import FeatureFile, to_hex

Progress = Callable[[int, int], None]


class Filling:
    """A feature file that is being filled.

    Parameters
    ----------
    file : FeatureFile
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
        file: FeatureFile,
        row_of: dict[int, int],
        preprocess: Preprocess,
        network: Callable[[], Network],
    ) -> None:
        self.file = file
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
        self, rows: NDArray[np.intp], pixels: NDArray[np.uint8], writer: Writer, report: Report
    ) -> None:
        """Embed those rows of a batch that this file needs; the writer then writes them."""
        mine = np.array([row in self._row_of for row in rows.tolist()], np.bool_)
        if not mine.any():
            return
        start = perf_counter()
        vectors = self._network().start(pixels if mine.all() else pixels[mine])
        where = np.array([self._row_of.pop(row) for row in rows[mine].tolist()], np.intp)
        self.seconds += perf_counter() - start

        def write() -> None:
            start = perf_counter()
            done = vectors()  # a GPU may still be at it
            middle = perf_counter()
            self.file.write(where, done)
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
            sha256 of the contents that may be in it, and their rows in the manifest.

        Raises
        ------
        FileNotFoundError
            Where there is no such file.
        CacheRefused
            Where it is damaged, or another backbone's.
        """
        with FeatureFile(part) as source:
            if source.key != self.file.key or source.dim != self.file.dim:
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
        self.file.write(np.array([self._row_of[row] for row in found], np.intp), values)
        for row in found:
            del self._row_of[row]
        self.computed += len(found)
        return len(found)


def pending_rows(fillings: Sequence[Filling]) -> list[int]:
    """Rows of the manifest that any of these files needs, sorted."""
    return sorted({row for filling in fillings for row in filling.pending})


def fill(
    fillings: Sequence[Filling],
    images: Images,
    threads: int,
    batch_size: int,
    report: Report,
    failed: Callable[[Mapping[int, Problem]], None],
    progress: Progress | None = None,
) -> None:
    """Embed what these files need, in one pass over the images.

    Parameters
    ----------
    fillings : sequence of Filling
    images : Images
    threads : int
        That read and decode.
    batch_size : int
    report : Report
        Its seconds are added to.
    failed : callable
        Told of the images of each batch that could not be embedded.
    progress : callable, optional
        Called with the images done and the images to do.
    """
    needing = [filling for filling in fillings if filling.pending]
    pending = np.array(pending_rows(needing), np.intp)
    if not len(pending):
        return
    preprocesses = list(dict.fromkeys(filling.preprocess for filling in needing))
    batches = load_batches(images, pending, preprocesses, batch_size, threads)
    done, start = 0, perf_counter()
    with closing(batches), Writer() as writer:
        for batch in batches:
            report.seconds["wait"] += perf_counter() - start
            report.seconds["read"] += batch.read
            report.seconds["decode"] += batch.decode
            failed(batch.problems)
            for filling in needing:
                if filling.pending:
                    pixels = batch.pixels[filling.preprocess]
                    filling.embed(batch.rows, pixels, writer, report)
            done += len(batch.rows) + len(batch.problems)
            if progress is not None:
                progress(done, len(pending))
            start = perf_counter()
