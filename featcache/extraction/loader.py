"""Loader: images are read and decoded by threads or worker processes, ahead of the network.

Threads serve a processor, whose cores the network needs. They hold one another up: a GPU outruns
any number of them. There, worker processes decode, and hand over pixels in shared memory.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from featcache.errors import FeatcacheError, RecipeError
from featcache.extraction import resizing
from featcache.extraction.batch import (
    Batch,
    Cuts,
    DecodeBudget,
    Loaded,
    Rows,
    collate,
    joined,
    load,
)
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.images.decode import BadImage, decode
from featcache.images.manifest import Images, RowReader, Strings, has_changed, rows_alone

log = logging.getLogger("featcache")

T = TypeVar("T")

_CHUNK_BYTES = 2 << 20  # of image files that a worker process takes at once
_SHARED_BYTES = 512 << 20  # of shared memory that must be free for worker processes


@dataclass(frozen=True)
class _Chunk:
    """What a worker process loads at once."""

    rows: Rows
    sha256: Strings
    read: RowReader  # of these rows, counted from 0


def count_workers(workers: int | str) -> int:
    """How many workers "auto" means: one for each core, at most 16."""
    if workers == "auto":
        return min(16, os.cpu_count() or 1)
    if not isinstance(workers, int) or workers < 1:
        raise RecipeError(f"workers {workers!r} is no positive number")
    return workers


@dataclass(frozen=True)
class Loading:
    """How images are loaded.

    Attributes
    ----------
    workers : int
        Threads, or processes.
    processes : bool, default False
        Whether they are processes, which begin at once.
    on_device : bool, default False
        Leave the cutting to the device of the network, if it can do it.
    pin : bool, default False
        Give pixels in page-locked memory, from which a GPU copies beside its computing.
    """

    workers: int
    processes: bool = False
    on_device: bool = False
    pin: bool = False

    def describe(self) -> dict[str, str]:
        """What is recorded with the features."""
        return {
            "loader": "processes" if self.processes else "threads",
            "resized": "device" if self.on_device else "Pillow",
        }


def choose_loading(images: Images, device: str, workers: int | str) -> Loading:
    """Threads for a processor; for a GPU processes where they can load these images."""
    count = count_workers(workers)
    if device == "cpu":
        return Loading(count)
    return Loading(count, _may_start_processes(images), on_device=True, pin=True)


def _may_start_processes(images: Images) -> bool:
    """Whether worker processes can load these images.

    Files are theirs. Pixels that lie in memory need no decoding; from an object store threads
    read as fast as the network gives.
    """
    if not hasattr(images.read, "part") or multiprocessing.current_process().daemon:
        return False
    shared = Path("/dev/shm")  # where torch puts it on Linux
    if shared.is_dir() and shutil.disk_usage(shared).free < _SHARED_BYTES:
        log.warning(
            "%s has less than %d MB of shared memory free: images are decoded by threads, more "
            "slowly; in a container, give it more (docker run --shm-size=2g)",
            shared, _SHARED_BYTES >> 20,
        )  # fmt: skip
        return False
    return True


class Batches(Iterator[Batch]):
    """Batches in order; closing ends all who work on them.

    As a context, it makes of a worker process's death an error that says on which file.
    """

    def __init__(
        self,
        batches: Generator[Batch, None, None],
        dead: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._batches = batches
        self._dead = dead

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Stop; what was decoded ahead is dropped."""
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        names = self._dead() if self._dead is not None and _is_death(error) else None
        self.close()
        if names is not None:
            raise FeatcacheError(
                f"a worker process ended while it was decoding {' or '.join(names) or 'an image'}",
                "Was the machine short of memory? Try fewer --workers; or move the file away. "
                "What is done is kept.",
            ) from None


def load_batches(
    images: Images,
    rows: Rows,
    preprocesses: Sequence[Preprocess],
    batch_size: int,
    loading: Loading,
) -> Batches:
    """Read these rows in order, decode each once, and cut it for every preprocessing.

    Parameters
    ----------
    images : Images
    rows : int array
        Rows of the manifest.
    preprocesses : sequence of Preprocess
        Without repeats.
    batch_size : int
        Rows taken for each batch; broken images make it shorter.
    loading : Loading
    """
    device = frozenset(p for p in preprocesses if loading.on_device and resizing.resizes(p))
    cuts = Cuts(tuple(preprocesses), device)
    if loading.processes:
        return _by_processes(images, rows, cuts, batch_size, loading)
    return Batches(_by_threads(images, rows, cuts, batch_size, loading.workers))


class Loader:
    """Loads rows of one manifest.

    Parameters
    ----------
    images : Images
    batch_size : int
    loading : Loading
    """

    def __init__(self, images: Images, batch_size: int, loading: Loading) -> None:
        self.loading = loading
        self.batch_size = batch_size
        self._images = images
        self._begun: tuple[Rows, set[Preprocess], Batches] | None = None

    def begin(self, rows: Rows, preprocesses: Sequence[Preprocess]) -> None:
        """Let worker processes load what will be asked for, while networks are built."""
        if self.loading.processes:
            self._begun = rows, set(preprocesses), self._load(rows, preprocesses)

    def load(self, rows: Rows, preprocesses: Sequence[Preprocess]) -> Batches:
        """Batches of these rows, see `load_batches`."""
        if self._begun is not None:
            begun_rows, begun_preprocesses, batches = self._begun
            if np.array_equal(rows, begun_rows) and set(preprocesses) <= begun_preprocesses:
                self._begun = None
                return batches
        self.close()
        return self._load(rows, preprocesses)

    def close(self) -> None:
        """End what has begun and was not asked for."""
        if self._begun is not None:
            self._begun[-1].close()
            self._begun = None

    def _load(self, rows: Rows, preprocesses: Sequence[Preprocess]) -> Batches:
        return load_batches(self._images, rows, preprocesses, self.batch_size, self.loading)


def _by_threads(
    images: Images, rows: Rows, cuts: Cuts, batch_size: int, workers: int
) -> Generator[Batch, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="featcache-load")
    waiting: deque[Future[Loaded]] = deque()
    upcoming = iter(rows.tolist())
    budget = DecodeBudget()

    def submit(row: int) -> None:
        waiting.append(pool.submit(load, images.read, row, images.sha256, row, cuts, budget))

    try:
        # Two batches ahead: enough to hide decoding, and memory stays bounded.
        for row in islice(upcoming, 2 * batch_size + workers):
            submit(row)
        while waiting:
            loaded = []
            for _ in range(min(batch_size, len(waiting))):
                loaded.append(waiting.popleft().result())
                for row in islice(upcoming, 1):
                    submit(row)
            yield collate(loaded, cuts)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _by_processes(
    images: Images, rows: Rows, cuts: Cuts, batch_size: int, loading: Loading
) -> Batches:
    workers = loading.workers
    per_batch = _chunks_of_a_batch(images, rows, batch_size, workers)
    chunks = [
        chunk
        for at in range(0, len(rows), batch_size)
        for chunk in np.array_split(rows[at : at + batch_size], per_batch)
    ]  # some of the last batch may be empty
    context = multiprocessing.get_context(_start_method())
    under_way = torch.full((workers, 2), -1)  # the process and the row of each worker
    under_way = Tensor.share_memory_(under_way)  # type: ignore[no-untyped-call]

    def chunk(of: Rows) -> _Chunk:
        read = rows_alone(images.read, of)
        assert read is not None, "see _may_start_processes"
        return _Chunk(of, images.sha256[of], read)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of more workers than cores: they were asked for
        loader: DataLoader[Batch] = DataLoader(
            _Decoding(cuts, under_way, DecodeBudget(context)),
            batch_size=None,
            sampler=map(chunk, chunks),  # each when it is its turn
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            pin_memory=loading.pin and torch.cuda.is_available(),
            multiprocessing_context=context,
        )
        decoded = iter(loader)  # the workers begin

    def batches() -> Generator[Batch, None, None]:
        try:
            yield Batch(rows[:0], {})  # so that closing it ends the workers in any case
            while several := list(islice(decoded, per_batch)):
                yield joined(several)
        finally:
            # What torch calls when nobody holds the iterator any more; a traceback may hold it.
            decoded._shutdown_workers()  # type: ignore[attr-defined]

    def dead() -> list[str]:
        alive = {process.pid for process in multiprocessing.active_children()}
        found = [row for pid, row in under_way.tolist() if row >= 0 and pid not in alive]
        return [str(images.ids[row]) for row in found]

    begun = batches()
    next(begun)
    return Batches(begun, dead)


def _chunks_of_a_batch(images: Images, rows: Rows, batch_size: int, workers: int) -> int:
    """Into how many chunks a batch is cut: large files are decoded a few at a time."""
    mean = float(images.size[rows].mean()) if len(images.size) and len(rows) else 0.0
    fits = max(1, int(_CHUNK_BYTES // max(mean, 1.0)))
    shared = -(-len(rows) // (2 * workers))  # a small set is work for all
    return -(-batch_size // max(1, min(batch_size, fits, max(shared, 8))))


def _start_method() -> str | None:
    """How worker processes start: as the user has set, else the quickest way that is safe here.

    Forked ones begin at once, and ask nothing of the user's own script; they only read files and
    decode. Systems without fork start a fresh Python, as every DataLoader there.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen is not None:
        return chosen
    return "fork" if "fork" in multiprocessing.get_all_start_methods()[:1] else None


class _Decoding(Dataset[Batch]):
    """What a worker process does with a chunk."""

    def __init__(self, cuts: Cuts, under_way: Tensor, budget: DecodeBudget) -> None:
        self._cuts = cuts
        self._budget = budget
        self._under_way = under_way

    def __getitem__(self, chunk: _Chunk) -> Batch:
        worker = get_worker_info()
        note = self._under_way[0 if worker is None else worker.id]  # (2,)
        note[0] = os.getpid()
        loaded = []
        for at, row in enumerate(chunk.rows.tolist()):
            note[1] = row
            loaded.append(load(chunk.read, at, chunk.sha256, row, self._cuts, self._budget))
        note[1] = -1
        return collate(loaded, self._cuts, shared=True)


def _as_it_is(value: T) -> T:
    return value


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches every process; the one that started the workers ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_death(error: BaseException | None) -> bool:
    """Whether it is what is raised when a worker process has died.

    torch says so; if its memory was about to be taken over, the connection to it breaks.
    """
    said = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
    return said or isinstance(error, ConnectionError | EOFError)


def spread(rows: Rows, count: int) -> Rows:
    """At most `count` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.intp)]


def load_sample(images: Images, rows: Rows, preprocess: Preprocess) -> tuple[Pixels, Rows]:
    """Load images one after another.

    Returns
    -------
    pixels : uint8 array of shape (k, 3, crop, crop)
    kept : int array of shape (k,)
        Which of `rows` they are; those that have changed, or can't be read or decoded, are left
        out.
    """
    pixels, kept = [], []
    for i, row in enumerate(rows.tolist()):
        try:
            content = images.read(row)
            if has_changed(content, images.sha256[row]):
                continue
            pixels.append(preprocess.cut(decode(content, preprocess.alpha, preprocess.at_least)))
        except (BadImage, OSError, MemoryError):
            continue
        kept.append(i)
    side = preprocess.crop
    stack = np.stack(pixels) if pixels else np.empty((0, 3, side, side), np.uint8)
    return stack, np.array(kept, np.intp)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine between the rows of two arrays of shape (n, d), shape (n,).

    1 if both are equal, NaN if one has infinite values.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)  # (n,)
    with np.errstate(invalid="ignore"):
        found = (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)  # (n,)
    result: NDArray[np.float64] = np.where((x == y).all(axis=1), 1.0, found)
    return result
