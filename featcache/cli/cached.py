"""The features that `fit` and `compare` work on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.cli.console import note
from featcache.errors import RecipeError
from featcache.images.options import KINDS

if TYPE_CHECKING:
    from featcache.store.features import Features


def cached_features(
    data: str | None,
    name: str | None,
    data_root: str | None,
    group: str | None,
    backbone: Sequence[str],
    cache: str,
    view: Sequence[str] = (),
) -> Features:
    """Load features from the cache.

    Without `data`, of the one data set that is there; with it, of that one, with labels, splits
    and groups as they are now.
    """
    from featcache.images.sources import open_images
    from featcache.store.cache import Cache

    store = Cache(cache)
    column = None if group in KINDS else group
    if data is None or (data in store.data_sets() and not Path(data).exists() and column is None):
        if column is not None:
            raise RecipeError(
                f"--group {group} needs the table that has this column", "Pass it with --data."
            )
        images = store.images(data or name)
    else:
        images = open_images(data, name=name, data_root=data_root, group=group, cache=cache)
    entries = store.choose(images.name, backbone)
    note(images.describe())
    for entry in entries:
        note(f"{entry.selector}: {entry.path}, {entry.dim} wide")
    return store.features(images, entries, view)
