"""Images at a URL: listed or looked up, digested where they are new or have changed, and read."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, counted, first_line
from featcache.hashing import sha256_bytes, sha256_json
from featcache.images.files import GRAIN_NS, check_utf8, is_image, recall, take_digests
from featcache.images.manifest import Images, make_images
from featcache.images.options import Options
from featcache.images.url import UrlFolder

log = logging.getLogger("featcache")

# What stores call that which changes with an object, and when it was last changed.
_MARKS = ("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "blob_id")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "modified",
          "updated", "created")  # fmt: skip
_THREADS = 16  # that wait for a store, mostly
_FEW = 256  # images of a table that are looked up one by one: a list would hold all others too
_KEPT = 2**28  # bytes of images that were read for their digests, and need not be read again
_IN_A_ROW = 20  # images that can't be read: then it is not them
_GIVE_UP = 60.0  # seconds in which a place that did not answer is not asked for pictures again


class Remote:
    """Images below a URL.

    Parameters
    ----------
    url : str
        What fsspec opens: `s3://bucket/photos`.

    Raises
    ------
    DataError
        See `UrlFolder`.
    """

    def __init__(self, url: str) -> None:
        self._folder = UrlFolder(url)
        self._facts: dict[str, tuple[int, int]] = {}  # of each id, size and mark
        self._now = time.time()

    def __str__(self) -> str:
        return self._folder.url

    @property
    def name(self) -> str:
        """The URL's last part."""
        return self._folder.name

    def list_images(self) -> list[str]:
        """Names of the image objects below the URL, relative to it, sorted; no hidden ones."""
        if not self._folder.can_list:
            raise DataError(
                f"{self} can't be listed: a web server need not say what it has",
                f"List the images in a CSV file, path,label, and pass --data-root {self}.",
            )
        self._list()
        return sorted(self._facts)

    def lacks(self, ids: Sequence[str]) -> list[str]:
        """Those that are not there."""
        if self._folder.can_list and len(ids) > _FEW:
            together = os.path.commonprefix(ids)  # noqa: RUF071  (it is cut at a slash)
            self._list(together.rpartition("/")[0], {*ids})
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                for _ in pool.map(self._look_up, ids):
                    pass
        return [id_ for id_ in ids if id_ not in self._facts]

    def read(self, id_: str) -> bytes:
        """One image's bytes.

        Raises
        ------
        OSError
            Where it is gone, or can't be read even when tried a few times.
        """
        return self._folder.read(id_)

    def images(
        self,
        name: str,
        ids: Sequence[str],
        *,
        labels: Sequence[str],
        groups: Sequence[str] | None,
        split: Sequence[str] | None,
        options: Options,
    ) -> Images:
        """The manifest of images that were listed or looked up; see `from_files`.

        One that can't be read for its digest is among them, and can't be read later either.
        """
        check_utf8(ids)
        size = np.array([self._facts[id_][0] for id_ in ids], np.int64)
        marks = np.array([self._facts[id_][1] for id_ in ids], np.int64)
        digests = recall(name, ids, size, marks, None if options.rehash else options.cache)
        if new := digests.count(""):
            log.info("%s: reading %s for the digest", self, counted(new, "image"))
        reading = _Reading(self._folder, ids, size)
        take_digests(digests, reading.digest, _THREADS)
        marks[list(reading.unread)] = 0
        return make_images(
            name,
            ids,
            digests,
            labels=labels,
            groups=groups,
            split=split,
            read=reading.read,
            size=size,
            mtime_ns=marks,
            source=options.source,
            root=self._folder.url,
        )

    def _list(self, below: str = "", wanted: set[str] | None = None) -> None:
        try:
            for id_, facts in self._folder.find(below):
                if id_ in wanted if wanted is not None else is_image(id_):
                    self._note(id_, facts)
        except FileNotFoundError:
            if wanted is None:
                raise self._refused("is not there", "") from None
        except OSError as error:
            raise self._refused("can't be listed", first_line(error)) from None

    def _look_up(self, id_: str) -> None:
        try:
            facts = self._folder.facts(id_)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused("can't be asked", first_line(error)) from None
        if facts.get("type", "file") == "file":
            self._note(id_, facts)

    def _note(self, id_: str, facts: Mapping[str, Any]) -> None:
        self._facts[id_] = int(facts.get("size") or 0), mark(facts, self._now)

    def _refused(self, what: str, why: str) -> DataError:
        return DataError(
            f"{self} {what}{f': {why}' if why else ''}",
            "Look at its name, the network and the credentials, which are taken from the "
            "environment.",
        )


class _Reading:
    """Reads images for their digests, and then again."""

    def __init__(self, folder: UrlFolder, ids: Sequence[str], size: NDArray[np.int64]) -> None:
        self.unread: dict[int, str] = {}  # of rows that could not be read, why
        self._folder = folder
        self._ids = ids
        self._size = size
        self._kept: dict[int, bytes] = {}
        self._room = _KEPT
        self._in_a_row = 0

    def digest(self, row: int) -> str:
        """sha256 of an image; one that can't be read gets one that no other image has."""
        try:
            found, content = self._folder.digest(self._ids[row], int(self._size[row]))
        except OSError as error:
            self.unread[row] = str(error.strerror or error)
            self._in_a_row += 1
            if self._in_a_row >= _IN_A_ROW:
                raise DataError(
                    f"{self._folder}: {_IN_A_ROW} images one after another can't be read, for "
                    f"instance {self._ids[row]}: {self.unread[row]}",
                    "Look at the network and the credentials, and run the same command again.",
                ) from None
            return sha256_bytes(f"unread {self._folder}/{self._ids[row]}".encode())
        self._in_a_row = 0
        if 0 < len(content) <= self._room:
            self._room -= len(content)
            self._kept[row] = content
        return found

    def read(self, row: int) -> bytes:
        """An image's bytes; those that are at hand are given once, and then let go of."""
        if row in self.unread:
            raise OSError(f"it could not be read when the images were listed: {self.unread[row]}")
        kept = self._kept.pop(row, None)
        return self._folder.read(self._ids[row]) if kept is None else kept


def mark(facts: Mapping[str, Any], now: float) -> int:
    """A number that changes when an object does, from what fsspec knows of it; 0 for unknown.

    Where there is only a time, one of just now is not trusted: an object changed again within
    the clock's grain would keep it.
    """
    marks = [str(facts[name]) for name in _MARKS if facts.get(name)]
    if not marks:
        times = [_seconds(facts[name]) for name in _TIMES if facts.get(name)]
        if not times or max(times) > now - GRAIN_NS / 1e9:
            return 0
        marks = [str(time) for time in times]
    return int(sha256_json(marks)[:15], 16) + 1


def _seconds(value: object) -> float:
    """A time as libraries give it; one of an unknown kind is never trusted."""
    if isinstance(value, str):
        try:
            value = parsedate_to_datetime(value)  # as HTTP has it
        except ValueError:
            return float("inf")
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) else float("inf")


@lru_cache(maxsize=4)
def pictures_at(url: str) -> Pictures:
    """The same object each time, so that many pages ask for a picture once."""
    return Pictures(url)


class Pictures:
    """Single images below a URL, for pages: each is read once.

    A place that does not answer is not asked again for a minute, so that no page waits for it
    over and over.
    """

    def __init__(self, url: str) -> None:
        self._folder = UrlFolder(url, patient=False)
        self._silent = -_GIVE_UP
        self.read = lru_cache(maxsize=256)(self._read)

    def _read(self, id_: str) -> bytes:
        if time.monotonic() - self._silent < _GIVE_UP:
            raise OSError(f"{self._folder} does not answer")
        try:
            return self._folder.read(id_)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            self._silent = time.monotonic()
            raise
