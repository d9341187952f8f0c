"""URL: a folder that fsspec opens, such as `s3://bucket/photos`, and what it is asked.

Whatever a store's library raises becomes an OSError, as for files; what may be a fault of the
network is tried a few times. Credentials are the library's business, from the environment: a URL
that holds some is refused, because URLs are written into origin.json, run.json and logs.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from errno import ENOENT
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from featcache.errors import DataError, RecipeError, first_line

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
    r"|(?:(?<=s3://)|(?<=s3a://)|(?<=http://)|(?<=https://))[^/@\s]+(?=@)"  # a key or token alone
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
        Where credentials stand in it, or may; one URL stands in another; it names no folder, or
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
