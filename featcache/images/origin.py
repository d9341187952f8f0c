"""Origin: where the images of an extraction were, so that a report can show some of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from featcache.errors import DataError
from featcache.images.manifest import ORIGIN_JSON, Content, Images
from featcache.images.place import open_place
from featcache.images.url import is_url

Reader = Callable[[str], Content]


def read_origin(folder: Path) -> tuple[str, str]:
    """What was opened, as the user named it, and the folder or URL of its ids; "" for unknown.

    Parameters
    ----------
    folder : Path
        The data set's folder in the cache.
    """
    try:
        plain = json.loads((folder / ORIGIN_JSON).read_text(encoding="utf-8"))
        return str(plain["source"]), str(plain["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def reopening(folder: Path) -> tuple[str, tuple[str, ...]]:
    """What was opened, "" for unknown, and the other options of the command line that it took."""
    source, _ = read_origin(folder)
    try:
        plain = json.loads((folder / ORIGIN_JSON).read_text(encoding="utf-8"))
        return source, tuple(map(str, plain.get("options", ())))
    except (OSError, ValueError, TypeError, AttributeError):
        return source, ()


def find_reader(folder: Path, images: Images) -> Reader | None:
    """How to read an image by its id, if the images can still be found.

    Parameters
    ----------
    folder : Path
        The data set's folder in the cache.
    images : Images
        Its manifest; where that can read images itself, it is asked.

    Returns
    -------
    callable or None
        id -> the file's bytes, or its pixels; raises OSError or KeyError for an image that is
        gone.
    """
    if images.can_read:
        row = {id_: i for i, id_ in enumerate(images.ids.tolist())}
        return lambda id_: images.read(row[id_])
    source, root = read_origin(folder)
    if is_url(root):
        return _pictures(root)
    if root and Path(root).is_dir():
        return open_place(root).read
    if (source or images.name) == "digits":
        from featcache.images.sources import open_images

        return find_reader(folder, open_images("digits", cache=None))
    return None


def _pictures(url: str) -> Reader | None:
    from featcache.images.remote import pictures_at

    try:
        return pictures_at(url).read
    except DataError:  # a library is not here, for instance
        return None
