"""Location: where images are by their ids, a folder or a URL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from featcache.images.files import SourceOptions, from_files, list_images, read_file
from featcache.images.manifest import Images
from featcache.images.remote import is_url


class Location(Protocol):
    """Where images are; as text, its path or URL."""

    @property
    def name(self) -> str:
        """What a data set from there is called."""

    def list_images(self) -> list[str]:
        """Ids of the images below it: paths relative to it, with forward slashes, sorted."""

    def lacks(self, ids: Sequence[str]) -> list[str]:
        """Those that are not there."""

    def read(self, id_: str) -> bytes:
        """One image's bytes; raises OSError."""

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
        """The manifest of images that were listed, or found not to be lacking."""


class Folder:
    """A folder on this machine; ids may be absolute paths."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    @property
    def name(self) -> str:
        return self._root.resolve().name

    def list_images(self) -> list[str]:
        return list_images(self._root)

    def lacks(self, ids: Sequence[str]) -> list[str]:
        return [id_ for id_ in ids if not (self._root / id_).is_file()]

    def read(self, id_: str) -> bytes:
        return read_file(self._root / id_)

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
        root = str(self._root)
        return from_files(
            name,
            [os.path.join(root, id_) for id_ in ids],
            ids=ids,
            labels=labels,
            groups=groups,
            split=split,
            cache=options.cache,
            rehash=options.rehash,
            digests=options.digests,
            source=options.source,
        )


def open_location(where: str | Path) -> Location:
    """The folder or URL that is meant.

    Raises
    ------
    DataError
        For a URL that can't be opened; whether anything is there is seen later.
    """
    if is_url(where):
        from featcache.images.remote import Remote

        return Remote(str(where))
    return Folder(Path(where).expanduser())
