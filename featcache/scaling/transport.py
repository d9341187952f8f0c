"""Parts: where workers leave what they have embedded, and the command finds it.

| | a shared cache folder | a URL |
|---|---|---|
| a worker writes | beside the file in progress | in a temporary folder of its own |
| it is handed over | by being there | by an upload of the finished file |
| the command reads | that file | its copy, beside the file in progress |

A part has the same name in both: `.resnet18.….h5.part-0-255.3f….partial`; at a URL the data set's
name stands before it. Everything else at the URL is left alone.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from featcache.atomic import sync
from featcache.errors import ClusterError, DataError, first_line
from featcache.images.remote import UrlFolder
from featcache.store.cache import Cache
from featcache.store.key import Key
from featcache.store.locking import find_parts

_SPAN = r"\d+-\d+"


class Transport(Protocol):
    """Where parts are of one data set; `url` is "" for a folder."""

    url: str

    def check(self, expected: Mapping[str, int]) -> None:
        """Refuse to work with a place that is not the client's, or can't be used.

        `expected` are files in progress on the client, and the bytes that they have at least.
        """

    def desk(self) -> AbstractContextManager[Path]:
        """A cache folder for a worker to write parts into."""

    def hand_over(self, part: Path) -> None:
        """A part is finished: let the command have it."""

    def names(self, key: Key, span: str = "") -> list[str]:
        """Of the parts that are there under a key, of the rows `first-last` or of all."""

    def fetch(self, name: str) -> Path:
        """A part as a file here; raises FileNotFoundError."""

    def delete(self, name: str) -> None:
        """A part's rows are where they belong: away with it."""

    def lost(self, name: str) -> ClusterError:
        """The error for a part that a worker has handed over, and that is not there."""


class SharedFolder:
    """Parts beside the file in progress, in a cache folder that all machines share."""

    url = ""

    def __init__(self, cache: Path, data: str) -> None:
        self._cache = cache
        self._data = data
        self._folder = cache / data

    def check(self, expected: Mapping[str, int]) -> None:
        for name, size in expected.items():
            path = self._folder / name
            if not path.is_file() or path.stat().st_size < size:
                raise DataError(
                    f"it does not see {path}: the cache folder must be shared, or parts travel "
                    "through an object store (--parts)"
                )
        if not os.access(self._folder, os.W_OK):
            raise DataError(f"it may not write into {self._folder}")

    @contextmanager
    def desk(self) -> Iterator[Path]:
        yield self._cache

    def hand_over(self, part: Path) -> None:
        sync(part)

    def names(self, key: Key, span: str = "") -> list[str]:
        return [path.name for path in find_parts(Cache(self._cache), self._data, key, span or "*")]

    def fetch(self, name: str) -> Path:
        return self._folder / name

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def lost(self, name: str) -> ClusterError:
        return ClusterError(
            f"a worker has written {name}, and it is not in {self._cache.absolute()}",
            "The cache folder must be one that all machines share; or let parts travel through "
            "an object store: --parts s3://bucket/parts",
        )


class ObjectStore:
    """Parts below a URL.

    Parameters
    ----------
    url : str
    cache : Path
        The command's own cache folder; a worker has none.
    data : str
        The data set's name.

    Raises
    ------
    DataError
        See `UrlFolder`.
    """

    def __init__(self, url: str, cache: Path, data: str) -> None:
        self._store = UrlFolder(url)
        self.url = self._store.url
        self._data = data
        self._folder = cache / data

    def check(self, expected: Mapping[str, int]) -> None:
        name, content = f"{self._data}.probe-{uuid.uuid4().hex}", os.urandom(64)
        with self._failing("used"):
            self._store.write(name, content)
            found = self._store.read(name)
            self._store.delete(name)
        if found != content:
            raise ClusterError(f"{self._store} gives back something else than was written")

    @contextmanager
    def desk(self) -> Iterator[Path]:
        with TemporaryDirectory(prefix="featcache-", dir=_scratch()) as folder:
            (Path(folder) / self._data).mkdir()
            yield Path(folder)

    def hand_over(self, part: Path) -> None:
        with self._failing("written"):
            self._store.upload(part, self._object(part.name))

    def names(self, key: Key, span: str = "") -> list[str]:
        rows = re.escape(span) if span else _SPAN
        ours = re.compile(rf"{re.escape(f'.{key.stem}.h5.part-')}{rows}\.[0-9a-f]+\.partial")
        with self._failing("listed"):
            found = self._store.names()
        names = [one.removeprefix(self._data) for one in found if one.startswith(self._data)]
        return sorted(name for name in names if ours.fullmatch(name))

    def fetch(self, name: str) -> Path:
        path = self._folder / name
        with self._failing("read"):
            self._store.download(self._object(name), path)
        return path

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        with self._failing("cleared"):
            self._store.delete(self._object(name))

    def lost(self, name: str) -> ClusterError:
        return ClusterError(
            f"a worker has uploaded {name}, and it is not at {self._store}",
            "Does another command use the same URL? Give each cache folder one of its own.",
        )

    def _object(self, name: str) -> str:
        return f"{self._data}{name}"

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Say what to do where the store refuses."""
        try:
            yield
        except FileNotFoundError:
            if what == "read":
                raise
            raise self._refused(what, "there is no such bucket or folder") from None
        except OSError as error:
            raise self._refused(what, first_line(error)) from None

    def _refused(self, what: str, why: str) -> ClusterError:
        return ClusterError(
            f"{self._store} can't be {what}: {why}",
            "Command and workers must be able to list, write, read and delete there. What is done "
            "is kept.",
        )


def open_transport(url: str, cache: Path, data: str) -> Transport:
    """Where a data set's parts are: at the URL, or without one in the cache folder."""
    return ObjectStore(url, cache, data) if url else SharedFolder(cache, data)


def _scratch() -> str | None:
    """The Dask worker's own folder, which Dask clears up after a kill; None for the system's."""
    from distributed import get_worker

    try:
        return str(get_worker().local_directory)
    except ValueError:  # in no worker
        return None
