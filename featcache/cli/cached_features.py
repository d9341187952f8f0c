"""The features that `fit` and `compare` work on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.cli.console import note
from featcache.errors import CacheMissing, DataError, RecipeError, unknown
from featcache.images.files import KINDS, SourceOptions

if TYPE_CHECKING:
    from featcache.images.manifest import Images
    from featcache.store.cache import Cache
    from featcache.store.features import Features


def cached_features(
    data: str | None,
    name: str | None,
    data_root: str | None,
    group: str | None,
    backbone: Sequence[str],
    cache: str,
    view: Sequence[str] = (),
    memory: str | None = None,
    jobs: int = 1,
) -> Features:
    """Load features from the cache.

    Without `data`, of the one data set that is there; with it, of that one, with labels, splits
    and groups as they are now. With `memory`, what they would not fit into stays on disk, see
    `store.room`; without it they are loaded.
    """
    from featcache.images.sources import open_images
    from featcache.store.cache import Cache
    from featcache.store.features import NO_VIEW
    from featcache.store.memory_budget import load, parse_memory

    if memory is not None:
        parse_memory(memory)  # before anything is read
    store = Cache(cache)
    column = None if group in KINDS else group
    if data is None or (names_data_set(store, data) and column is None):
        if column is not None:
            raise RecipeError(
                f"--group {group} needs the table that has this column", "Pass it with --data."
            )
        images = store.images(data or name)
    else:
        images = open_images(
            data, name=name, data_root=data_root, group=group, cache=cache, download=False
        )
    try:
        entries = store.choose(images, backbone, view)
    except CacheMissing:
        _refuse_unknown(backbone)
        raise
    note(images.describe())
    for entry in entries:
        note(f"{entry.selector}: {entry.path}, {entry.dim} wide")
    if view:
        from featcache.extraction.preprocess import VIEWS

        for one in view:
            if one not in VIEWS:
                raise unknown("view", one, [known for known in VIEWS if known != NO_VIEW])
    if memory is None:
        return store.features(images, entries, view)
    return load(store, images, entries, view, memory, jobs)


def how_opened(
    data: str | None, name: str | None, data_root: str | None, group: str | None, cache: str
) -> list[str]:
    """The options that open the images again; [] where `cached_features` asks the cache alone."""
    from featcache.store.cache import Cache

    column = None if group in KINDS else group
    if data is None or (names_data_set(Cache(cache), data) and column is None):
        return []
    rest = SourceOptions(source=data, root=data_root, group=group).words
    return ["--data", data, *(["--name", name] if name else []), *rest]


def _refuse_unknown(backbone: Sequence[str]) -> None:
    """Raises UnknownName for what no extraction could be asked for."""
    from featcache.extraction.registry import family_of
    from featcache.store.spec import parse_spec, split_key

    for wanted in backbone:
        family_of(parse_spec(split_key(wanted)[0]).name)


def names_data_set(store: Cache, data: str) -> bool:
    """Whether --data is the name of a data set in the cache, and no file or folder."""
    return data in store.data_sets() and not Path(data).exists()


def images_as_they_are(store: Cache, data: str | None = None, rehash: bool = False) -> Images:
    """The images of a data set of the cache, by default of its only one.

    Opened anew where they were; where they are not found there, as they were extracted.
    """
    from featcache.images.remote import is_url
    from featcache.images.sources import open_images, read_origin
    from featcache.images.table import TABLES
    from featcache.images.timeseries import is_there

    known = store.images(data)
    source, root, _ = read_origin(store.folder / known.name)
    is_table = Path(source).suffix.lower() in TABLES
    if is_table and (is_url(source) or Path(source).is_file()):
        where, data_root = source, root or None
    elif root and (is_url(root) or Path(root).is_dir()) and not is_table:
        where = f"cnmc:{root}" if source.startswith("cnmc:") else root
        data_root = None
    elif source == "digits" or is_there(source):
        where, data_root = source, None
    else:
        note(f"{known.name}: its images are not where they were; taking the list in the cache")
        return known
    return open_images(
        where,
        name=known.name,
        data_root=data_root,
        cache=store.folder,
        rehash=rehash,
        download=False,
    )


def readable_images(store: Cache, data: str | None) -> Images:
    """`images_as_they_are`, refused where the images themselves are not found."""
    images = images_as_they_are(store, data)
    if not images.can_read:
        raise DataError(
            f"the images of {images.name} are not where they were", "Say where with --source."
        )
    return images
