"""Writing: one process at a time, on top of every vector that is known already."""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from featcache.atomic import guard_writes
from featcache.errors import CacheBusy, CacheRefused, CacheUnwritable, RecipeError
from featcache.store.cache import Cache
from featcache.store.feature_file import Digests, FeatureFile, create, positions
from featcache.store.key import Key

log = logging.getLogger("featcache")

LOCK_VARIABLE = "FEATCACHE_LOCK"
_REFUSED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_OF_THE_FILE_ITSELF = ("format", "key", "created", "complete")


@contextmanager
def lock(cache: Cache, data: str, key: Key, wait: bool = False) -> Iterator[None]:
    """Hold the right to write the feature file of a data set under a key; see `hold`."""
    path = cache.path(data, key)
    with guard_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path, wait):
        yield


@contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the right to write one feature file.

    Raises
    ------
    CacheBusy
        If another process holds it, unless `wait`.
    """
    held = lock_for(path)
    try:
        held.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise CacheBusy(
            f"another process is writing {path}",
            "Let it finish and run the same command again, or wait for it with --wait.",
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or error.errno in _REFUSED:
            raise CacheUnwritable(
                f"the file system of {path.parent} refuses locks",
                f"Set {LOCK_VARIABLE}=soft: a lock file then stands for the lock, and must be "
                "deleted by hand after a crash.",
            ) from None
        with guard_writes(path):
            raise
    try:
        yield
    finally:
        held.release()


def lock_for(path: Path) -> BaseFileLock:
    """The lock of a feature file, as FEATCACHE_LOCK says: "hard" (the default) or "soft"."""
    kind = os.environ.get(LOCK_VARIABLE, "hard")
    if kind not in ("hard", "soft"):
        raise RecipeError(f"{LOCK_VARIABLE} is {kind!r}", "Use hard or soft.")
    name = path.with_name(f".{path.name}.lock")
    return FileLock(name) if kind == "hard" else SoftFileLock(name)


def recorded(cache: Cache, data: str, key: Key) -> dict[str, Any]:
    """What is recorded of how a file's rows were made; empty where there is none to read.

    The file in progress comes first: it is what goes on.
    """
    for path in (cache.partial(data, key), cache.path(data, key)):
        try:
            with FeatureFile(path) as file:
                return file.attributes
        except (FileNotFoundError, CacheRefused):
            continue
    return {}


def begin(cache: Cache, data: str, key: Key, digests: Digests, dim: int) -> FeatureFile:
    """Open the file in progress for these contents, with every row known already filled in.

    Rows come from the finished file that this one will replace, from an interrupted attempt and
    its parts, and from other data sets' files under the same key; each only if its checksum
    agrees. Call with the lock held; `finish(path)` puts the file in its place.

    Parameters
    ----------
    cache : Cache
    data : str
    key : Key
    digests : uint8 array of shape (n, 32)
        The contents wanted, without repeats. Rows that are known besides, of images that are
        gone, are kept.
    dim : int
        Width of a vector.
    """
    final = cache.path(data, key)
    partial = cache.partial(data, key)
    kept = _rows_to_keep(final, [partial, *find_parts(cache, data, key)], key, digests)
    rows = np.concatenate([kept, digests[positions(digests, kept) < 0]])
    resumed = _resume(partial, key, rows, dim)
    if resumed is not None:
        _copy_parts(cache, data, key, resumed)
        return resumed
    fresh = partial.with_name(f"{partial.name}.new")
    with create(fresh, key, rows, dim) as file:
        others = cache.folder.glob(f"*/{final.name}")
        for donor in [final, partial, *sorted(set(others) - {final})]:
            _copy_rows(donor, file)
    fresh.replace(partial)
    file = FeatureFile(partial, writable=True)
    _copy_parts(cache, data, key, file)
    return file


def new_part(cache: Cache, data: str, key: Key, first: int, last: int) -> Path:
    """Where one of several processes collects the vectors of a range of rows, for the one file.

    A name of its own each time: a process that was taken for dead may still be writing.
    """
    return part_beside(cache.path(data, key), f"{first}-{last}")


def part_beside(final: Path, span: str) -> Path:
    """A new part's name, by that of the finished file."""
    return final.with_name(f".{final.name}.part-{span}.{uuid.uuid4().hex[:12]}.partial")


def find_parts(cache: Cache, data: str, key: Key, span: str = "*") -> list[Path]:
    """The parts that are there, of the rows `first-last` or of all, finished or not."""
    final = cache.path(data, key)
    return sorted(final.parent.glob(f".{final.name}.part-{span}.*.partial"))


def delete_parts(cache: Cache, data: str, key: Key) -> None:
    """Delete all parts, once their rows are where they belong, and those half written by a kill."""
    final = cache.path(data, key)
    for part in [*find_parts(cache, data, key), *final.parent.glob(f"..{final.name}.part-*.tmp")]:
        part.unlink(missing_ok=True)


def _copy_parts(cache: Cache, data: str, key: Key, file: FeatureFile) -> None:
    """What processes on other machines had done before this one was stopped."""
    for part in find_parts(cache, data, key):
        _copy_rows(part, file)
        part.unlink(missing_ok=True)


def _rows_to_keep(final: Path, interrupted: Sequence[Path], key: Key, digests: Digests) -> Digests:
    """The rows that the new file begins with: the finished file's, then the interrupted ones'.

    Of the latter those that are good; of the first of them also those still wanted: a plain
    resumption finds its own rows in their own order.
    """
    kept: Digests = digests[:0]
    if final.is_file():
        with FeatureFile(final) as file:
            kept = file.digests
    for place, path in enumerate(interrupted):
        try:
            with FeatureFile(path) as file:
                if file.key == key:
                    wanted = positions(file.digests, digests) >= 0
                    useful = file.good() & ~wanted if place else file.good() | wanted
                    fresh = useful & (positions(file.digests, kept) < 0)
                    kept = np.concatenate([kept, file.digests[fresh]])
        except (FileNotFoundError, CacheRefused):
            continue
    return kept


def _resume(partial: Path, key: Key, rows: Digests, dim: int) -> FeatureFile | None:
    """The interrupted file, if it is one for the same rows; rows that don't check are undone."""
    try:
        file = FeatureFile(partial, writable=True)
    except (FileNotFoundError, CacheRefused):
        return None
    if file.key != key or file.dim != dim or not np.array_equal(file.digests, rows):
        file.close()
        return None
    file.undo(np.flatnonzero(file.done() & ~file.good()))
    return file


def _copy_rows(donor: Path, file: FeatureFile) -> None:
    """Fill rows of `file` that are not done from the good rows of another file."""
    try:
        with FeatureFile(donor) as source:
            if source.key != file.key or source.dim != file.dim:
                return
            todo = np.flatnonzero(~file.done())
            rows = positions(file.digests[todo], source.digests)
            usable = np.append(source.good(), False)[rows]  # position -1 is not usable
            todo, rows = todo[usable], rows[usable]
            if len(todo):
                file.annotate(
                    {k: v for k, v in source.attributes.items() if k not in _OF_THE_FILE_ITSELF}
                )
            for start in range(0, len(todo), source.rows_at_once):
                part = slice(start, start + source.rows_at_once)
                values = np.empty((len(rows[part]), source.dim), source.key.dtype)
                source.read(rows[part], values)
                file.write(todo[part], values)
    except FileNotFoundError:
        return
    except CacheRefused as error:
        log.warning("not reused: %s", error.problem)
