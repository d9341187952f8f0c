"""Inputs: from what the user names to the image files that are meant."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from featcache.errors import DataError
from featcache.hashing import sha256_bytes
from featcache.images.files import is_image, list_images, read_file
from featcache.images.location import open_location
from featcache.images.manifest import Content, Images, strings
from featcache.images.remote import check_url, is_url, split_url

_MAGIC = frozenset("*?[")


def list_paths(named: Iterable[str | Path], stdin: Callable[[], Iterable[str]]) -> list[str]:
    """Image files, in the order named, each once.

    Parameters
    ----------
    named : iterable of str or Path
        Files; folders, for the image files below them; URLs of either; patterns such as
        "new/**/*.jpg"; "-" for a list of any of these but "-", one a line.
    stdin : callable
        Gives the lines of that list.

    Returns
    -------
    list of str
        A file that isn't there is among them: it can't be read, and will be told so.

    Raises
    ------
    DataError
        If nothing is named, or a folder or pattern holds no images.
    """
    found: dict[str, None] = {}
    for one in named:
        if str(one) == "-":
            lines = [line.rstrip("\r\n") for line in stdin()]
            for line in filter(None, lines):
                found |= dict.fromkeys(_expand(line))
        else:
            found |= dict.fromkeys(_expand(str(one)))
    if not found:
        raise DataError("no images named", "Pass files, folders or patterns, or - for a list.")
    return list(found)


def _expand(named: str) -> list[str]:
    if is_url(named):
        return _expand_url(check_url(named))
    path = Path(named).expanduser()
    if path.is_dir():
        below = [str(path / id_) for id_ in list_images(path)]
        if not below:
            raise DataError(f"no images below {named}")
        return below
    if path.exists() or not _MAGIC & set(named):
        return [str(path)]
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207  (an absolute pattern too)
    matching = sorted(p for p in found if Path(p).is_file())
    if not matching:
        raise DataError(f"no file is like {named!r}")
    return matching


def _expand_url(url: str) -> list[str]:
    if is_image(split_url(url)[1]):
        return [url]
    below = [f"{url}/{id_}" for id_ in open_location(url).list_images()]
    if not below:
        raise DataError(f"no images below {url}")
    return below


def as_images(contents: list[str | Content]) -> Images:
    """A manifest of files, or of pixels, that are read when their turn comes.

    Their digests are taken as they are read, so that nothing is read twice.
    """
    sha256 = np.full(len(contents), "", dtype="<U64")

    def read(row: int) -> Content:
        named = contents[row]
        content = _read(named) if isinstance(named, str) else named
        if isinstance(content, bytes):
            sha256[row] = sha256_bytes(content)
        return content

    ids = strings(f"{row:09d}" for row in range(len(contents)))
    empty = np.full(len(contents), "")
    return Images("new", ids, sha256, empty, empty, empty, read=read, source="new images")


def _read(named: str) -> bytes:
    if is_url(named):
        folder, name = split_url(named)
        return open_location(folder).read(name)
    return read_file(named)
