"""Remote: images at a URL that fsspec opens: listed, digested if new or changed, and read.

Whatever a store's library raises becomes an OSError, as for files; what may be a fault of the
network is tried a few times. Credentials are the library's business, from the environment: a URL
that holds some is refused, because URLs are written into origin.json, run.json and logs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from errno import ENOENT
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, RecipeError, counted, first_line
from featcache.hashing import sha256_bytes, sha256_json
from featcache.images.files import (
    GRAIN_NS,
    SourceOptions,
    check_utf8,
    is_image,
    recall,
    say_skipped,
    take_digests,
)
from featcache.images.manifest import Images, make_images

T = TypeVar("T")

_PAUSES = (0.2, 1.0, 4.0)  # seconds before each further attempt
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LIBRARIES = {
    "s3": "s3fs", "s3a": "s3fs",
    "gs": "gcsfs", "gcs": "gcsfs",
    "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "http": "aiohttp requests", "https": "aiohttp requests",
    "hf": "huggingface_hub", "oss": "ossfs", "sftp": "paramiko", "ssh": "paramiko",
    "smb": "smbprotocol", "webdav": "webdav4", "hdfs": "pyarrow",
}  # fmt: skip
_UNLISTED = ("http", "https")
_LOCAL = ("file", "local")
_PASSWORD = re.compile(
    r"(?<=://)[^/@:]*:(?!\d+(?:/|$))[^@]*(?=@)"  # host:9000/… is none
    r"|(?:(?<=s3://)|(?<=s3a://))[^/@:]*:[^@]*(?=@)"  # there a port can't be
    r"|(?:(?<=s3://)|(?<=s3a://)|(?<=http://)|(?<=https://))[^/@\s]+(?=@)",  # a key or token alone
    re.IGNORECASE,
)
_AT_ONCE = 2**22  # bytes of a big object that are digested together
_BIG = 2**26


def is_url(text: object) -> bool:
    """Whether it names a place that fsspec opens, rather than a path."""
    return "://" in str(text)


def without_secrets(text: str) -> str:
    """A URL, or text around one, fit to be shown."""
    shown = _PASSWORD.sub("***", text)
    return re.sub(r"\?.*", "?***", shown) if is_url(shown) else shown


def need_folder(where: str | Path, what: str) -> None:
    """Refuse a URL where files are written in place; `what` is named in the error."""
    if is_url(where):
        raise RecipeError(
            f"{what} can't be at {without_secrets(str(where))}",
            "Name a folder, and copy what is in it to the store afterwards.",
        )


def check_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises
    ------
    DataError
        If credentials stand in it, or may; one URL stands in another; it names no folder, or
        one that depends on where the command was started.
    """
    shown = without_secrets(url)
    if shown != url:
        raise DataError(
            f"{shown}: a password, key or query in a URL would be written down with the results",
            "Leave it out: credentials are taken from the environment, as fsspec's libraries do "
            "(AWS_PROFILE or AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, "
            "AZURE_STORAGE_CONNECTION_STRING, …).",
        )
    if "::" in url:
        raise DataError(f"{url}: URLs in one another are not opened", "Unpack archives first.")
    scheme, mark, rest = url.partition("://")
    if "#" in rest and scheme.lower() in _UNLISTED:
        raise DataError(
            f"{scheme}://{rest.partition('#')[0]}#…: a server is never told what follows #",
            "Leave it out.",
        )
    if not rest.strip("/"):
        raise DataError(f"{url} names no bucket or folder", "For instance s3://bucket/photos")
    if scheme.lower() in _LOCAL and not rest.startswith("/"):
        raise DataError(f"{url} is a relative path", f"Write {scheme}:/// and the whole path.")
    return f"{scheme.lower()}{mark}{rest.rstrip('/')}"


def split_url(url: str) -> tuple[str, str]:
    """The URL of the folder that an object is in, and the object's name."""
    scheme, mark, rest = url.partition("://")
    folder, _, name = rest.rpartition("/")
    return f"{scheme}{mark}{folder}", name


class UrlFolder:
    """A folder at a URL.

    Parameters
    ----------
    url : str
    patient : bool, default True
        Whether to try again what may be a fault of the network.

    Attributes
    ----------
    url : str
        Without a slash at its end.
    can_list : bool
        Whether it can say what is in it.

    Raises
    ------
    DataError
        For a URL that is refused or of a kind that nobody knows, or where a library is absent.
    """

    def __init__(self, url: str, patient: bool = True) -> None:
        self.url = check_url(url)
        self._fs, path = _open(self.url)
        self._path = path.rstrip("/")
        self._pauses = _PAUSES if patient else ()
        kinds = {self._fs.protocol} if isinstance(self._fs.protocol, str) else {*self._fs.protocol}
        self.can_list = not kinds & {*_UNLISTED}
        # Others, as sftp's, talk over one connection.
        threads = self._fs.async_impl or kinds & {*_LOCAL, "memory"}
        self._turn: AbstractContextManager[object] = (
            nullcontext() if threads else _lock_of(self._fs)
        )

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path; "" where there is none."""
        return self.url.partition("://")[2].rpartition("/")[2]

    def find(self, below: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Name, relative to the folder, and fsspec's facts of every object below it."""
        top = self._at(below) if below else self._path
        self._ask(lambda: self._fs.invalidate_cache())
        found: dict[str, dict[str, Any]] = self._ask(lambda: self._fs.find(top, detail=True))
        self._ask(lambda: self._fs.invalidate_cache())  # its own copy of the list
        if not found:  # nothing in it, or nothing there
            self._ask(lambda: self._fs.info(top))
        prefix = self._at("")
        for path, facts in found.items():
            if facts.get("type", "file") == "file" and path.startswith(prefix):
                yield path.removeprefix(prefix), facts

    def names(self) -> list[str]:
        """Of the objects that are directly in it; none where it isn't there."""
        self._ask(lambda: self._fs.invalidate_cache())
        try:
            found = self._ask(lambda: self._fs.ls(self._path, detail=True))
        except FileNotFoundError:
            return []
        return [one["name"].rpartition("/")[2] for one in found if one["type"] == "file"]

    def facts(self, name: str) -> dict[str, Any]:
        """What fsspec knows of one object."""
        return dict(self._ask(lambda: self._fs.info(self._at(name))))

    def read(self, name: str) -> bytes:
        """One object's bytes."""
        try:
            return bytes(self._ask(lambda: self._fs.cat_file(self._at(name))))
        except FileNotFoundError:  # libraries say anything here, or the path alone
            raise FileNotFoundError(ENOENT, "no such object", f"{self.url}/{name}") from None

    def digest(self, name: str, size: int) -> tuple[str, bytes]:
        """sha256 of an object of about that size, and its bytes; those of a big one are b""."""
        if size > _BIG:
            return self._ask(lambda: self._digest(name)), b""
        content = self.read(name)
        return hashlib.sha256(content).hexdigest(), content

    def write(self, name: str, content: bytes) -> None:
        self._ask(lambda: self._fs.pipe_file(self._at(name), content))

    def upload(self, path: Path, name: str) -> None:
        """Copy a file here; it is there when all of it is, where the store can do that."""
        self._ask(lambda: self._fs.put_file(str(path), self._at(name)))

    def download(self, name: str, path: Path) -> None:
        self._ask(lambda: self._fs.get_file(self._at(name), str(path)))

    def delete(self, name: str) -> None:
        """Delete one object, if it is there."""
        try:
            self._ask(lambda: self._fs.rm_file(self._at(name)))
        except FileNotFoundError:
            return

    def _at(self, name: str) -> str:
        if not self.can_list:  # there these would end the path
            name = name.replace("#", "%23").replace("?", "%3F")
        return f"{self._path}/{name}"

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._at(name), "rb") as file:
            while piece := file.read(_AT_ONCE):
                digest.update(piece)
        return digest.hexdigest()

    def _ask(self, what: Callable[[], T]) -> T:
        """Do it; a few times, where it fails in a way that may pass."""
        for pause in self._pauses:
            try:
                return self._once(what)
            except _LASTING:
                raise
            except OSError:
                time.sleep(pause)
        return self._once(what)

    def _once(self, what: Callable[[], T]) -> T:
        try:
            with self._turn:
                return what()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  (each store's library has its own)
            kind = _kind(error)
            why = without_secrets(first_line(error))  # the address of a redirection, for instance
            raise kind(f"{type(error).__name__}: {why}") from None


@lru_cache
def _lock_of(fs: object) -> Lock:
    return Lock()


def _kind(error: Exception) -> type[OSError]:
    """Which OSError it would be for a file, by the status of HTTP that most of them carry."""
    found = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    code = next((value for value in found if isinstance(value, int)), 0)
    if code in (401, 403):
        return PermissionError
    return FileNotFoundError if code in (404, 410) else OSError


def _open(url: str) -> tuple[Any, str]:
    """The file system, and the folder's path in it."""
    protocol = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        more = f" {_LIBRARIES[protocol]}" if protocol in _LIBRARIES else ""
        raise DataError(
            f"opening {url} needs fsspec", f'pip install "featcache[remote]"{more}'
        ) from None
    options = {"auto_mkdir": True} if protocol in _LOCAL else {}
    try:
        fs, path = url_to_fs(url, **options)
    except ImportError as error:
        library = _LIBRARIES.get(protocol)
        remedy = f"pip install {library}" if library else first_line(error)
        what = library or "a library that is not here"
        raise DataError(f"opening {protocol}://… needs {what}", remedy) from None
    except Exception as error:  # noqa: BLE001  (a name that is none, settings that don't agree)
        raise DataError(
            f"{url} can't be opened: {first_line(error)}",
            "Known are s3, gs, az, https, file and whatever else fsspec opens.",
        ) from None
    return fs, str(path)


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
            If it is gone, or can't be read even when tried a few times.
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
        options: SourceOptions,
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
            skipped = []
            for id_, facts in self._folder.find(below):
                if id_ in wanted if wanted is not None else is_image(id_):
                    self._note(id_, facts)
                elif wanted is None:
                    skipped.append(id_)
            say_skipped(skipped, self)
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

    If there is only a time, one of just now is not trusted: an object changed again within
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
