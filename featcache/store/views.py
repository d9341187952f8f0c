"""Views in the cache: files that differ from a chosen one in `preprocess.view` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheMissing, RecipeError
from featcache.images.manifest import Images
from featcache.store.command import extract_commands
from featcache.store.entry import Entry
from featcache.store.features import NO_VIEW, Floats, Strings
from featcache.store.file import FeatureFile
from featcache.store.key import Key
from featcache.store.stored import stored_tables


def find_views(
    entries: Sequence[Entry], chosen: Sequence[Entry], views: Sequence[str], images: Images
) -> list[list[Entry]]:
    """For each view the files that belong to the chosen ones.

    Parameters
    ----------
    entries : sequence of Entry
        All finished files of the data set.
    chosen : sequence of Entry
        Files of the images themselves.
    views : sequence of str
        For instance "hflip".
    images : Images
        What to name in the command that would make those that are absent.

    Raises
    ------
    CacheMissing
        Where a view was not extracted; it names all that were not.
    RecipeError
        For the view "none", or where a chosen file is one of a view already.
    """
    if NO_VIEW in views:
        raise RecipeError("view 'none' is the image itself", "Leave it out, or name another view.")
    for entry in chosen:
        if (own := entry.key.preprocess.get("view", NO_VIEW)) != NO_VIEW:
            raise RecipeError(
                f"{entry.selector} holds a view already ({own})",
                f"Choose the images themselves: --backbone {entry.key.backbone}.",
            )
    known = {entry.key.digest: entry for entry in entries}
    keys = [[_seen_as(entry.key, view) for entry in chosen] for view in views]
    absent = {
        (view, entry.selector): entry
        for view, row in zip(views, keys, strict=True)
        for entry, key in zip(chosen, row, strict=True)
        if key.digest not in known
    }
    if absent:
        which = ", ".join(f"{view} of {selector}" for view, selector in absent)
        several = len(absent) > 1
        raise CacheMissing(
            f"{'the views' if several else 'the view'} {which} {'were' if several else 'was'} not "
            f"extracted for {chosen[0].data}",
            extract_commands(
                list({entry.path: entry for entry in absent.values()}.values()),
                images.source or images.name,
                list(dict.fromkeys(view for view, _ in absent)),
                images.options,
            ),
        )
    return [[known[key.digest] for key in row] for row in keys]


def _seen_as(key: Key, view: str) -> Key:
    return replace(key, preprocess={**key.preprocess, "view": view})


def read_tables(
    tables: Sequence[Sequence[Entry]],
    where: Sequence[NDArray[np.intp]],
    keep: NDArray[np.intp],
    lazy: bool = False,
) -> Floats:
    """Vectors of several views, one view under the other.

    Parameters
    ----------
    tables : sequence of sequences of Entry
        For each view its entries, which stand side by side.
    where : sequence of int arrays
        For each entry, in that order, the row of each image.
    keep : int array of shape (n,)
        The images to read.
    lazy : bool, default False
        Leave them in their files.

    Returns
    -------
    float32 array of shape (views * n, d1 + … + dk); a `Stored` of that shape where `lazy`
    """
    if lazy:
        return cast(Floats, stored_tables(tables, where, keep))
    n, width = len(keep), sum(entry.dim for entry in tables[0])
    X = np.empty((n * len(tables), width), np.float32)
    rows = iter(where)
    for place, entries in enumerate(tables):
        part, start = X[place * n : (place + 1) * n], 0  # (n, width)
        for entry in entries:
            with FeatureFile(entry.path) as file:
                file.read(next(rows)[keep], part[:, start : start + entry.dim])
            start += entry.dim
    return X


def columns_of(images: Images, keep: NDArray[np.intp], views: Sequence[str]) -> dict[str, Strings]:
    """What stands beside the vectors of several views: those of the images, again for each view.

    Where that is all images and no view, the manifest's own arrays, not copies: a million digests
    are 256 MB.
    """

    def column(values: Strings) -> Strings:
        kept = values if len(keep) == len(images) else values[keep]
        return np.tile(kept, len(views)) if len(views) > 1 else kept

    ids = [column(images.ids)[: len(keep)]]
    ids += [np.char.add(ids[0], f"@{name}") for name in views[1:]]
    return {
        "y": column(images.labels),
        "ids": np.concatenate(ids) if len(ids) > 1 else ids[0],
        "sha256": column(images.sha256),
        "groups": column(images.groups),
        "split": column(images.split),
        "view": np.repeat(np.array(views, np.str_), len(keep)),
    }
