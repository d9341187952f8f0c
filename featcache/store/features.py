"""Features: what crosses from extraction to fitting, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.display import html_table
from featcache.errors import CacheMissing, DataError, RecipeError, counted, unknown
from featcache.hashing import sha256_json
from featcache.images.dhash import Hashes, no_hashes
from featcache.images.manifest import Images
from featcache.store.feature_file import Digests, FeatureFile
from featcache.store.key import Entry, Key
from featcache.store.lazy import LazyRows, stored_tables
from featcache.store.spec import extract_commands

Floats = NDArray[np.float32]
Strings = NDArray[np.str_]

NO_VIEW = "none"


@dataclass(frozen=True, eq=False)
class Features:
    """Cached vectors of one or more backbones, row by row with their labels.

    Attributes
    ----------
    X : float32 array of shape (n, d1 + … + dk)
        The backbones' vectors side by side, in the order of `names`: by name where they come from
        the cache or `join`. Or a `LazyRows` of that shape,
        which leaves them in their files: `Cache.features(…, lazy=True)`.
    y : str array of shape (n,)
        Labels.
    ids : str array of shape (n,)
        Image ids; unique. A view of an image has the image's own, "@" and the view's name.
    sha256 : str array of shape (n,)
        Hex digest of each image's content; equal digests are equal images.
    groups : str array of shape (n,)
        Rows that must stay on one side of a split share a group; "" where there is none.
    split : str array of shape (n,)
        "train", "val", "test", or "" where the data has no split of its own.
    blocks : tuple of int
        Width of each backbone's block (d1, …, dk).
    names : tuple of str
        The backbones' names, one for each block.
    keys : tuple of str
        Digest of each block's cache key, so that a result can say what it was computed from.
    data : str
        The data set's name.
    view : str array of shape (n,)
        What was done to the image before it was embedded, for instance "hflip"; "none" for the
        image itself, which is the default for all rows. Views are further rows to train on: label,
        content, group and split are those of their image.
    trained_on : tuple of frozenset of str
        For each block the sha256 of the images that its backbone was fine-tuned on, which must
        not be scored; () where no backbone was.
    origins : tuple of Key
        The whole cache key of each block, so that new images can be embedded in the same way; ()
        where the vectors came from no cache.
    quantised : mapping of str to Path
        For keys of int8 vectors, the feature file that holds their network.
    dhash : uint8 array of shape (n, 32) or (0, 32)
        What near duplicates are found by besides the vectors, see `featcache.images.dhash`; zeros
        where it is not known. Of a view that of its image.
    """

    X: Floats
    y: Strings
    ids: Strings
    sha256: Strings
    groups: Strings
    split: Strings
    blocks: tuple[int, ...]
    names: tuple[str, ...]
    keys: tuple[str, ...]
    data: str = "data"
    view: Strings = field(default_factory=lambda: np.empty(0, np.str_))
    trained_on: tuple[frozenset[str], ...] = ()
    origins: tuple[Key, ...] = ()
    quantised: Mapping[str, Path] = field(default_factory=dict)
    dhash: Hashes = field(default_factory=no_hashes, repr=False)

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not len(self.view):
            object.__setattr__(self, "view", np.full(n, NO_VIEW))
        for name in ("y", "sha256", "groups", "split", "view"):
            if len(getattr(self, name)) != n:
                raise DataError(
                    f"{name} has {counted(len(getattr(self, name)), 'row')}, ids has {n}"
                )
        if len(self.dhash) not in (0, n):
            raise DataError(f"dhash has {counted(len(self.dhash), 'row')}, ids has {n}")
        if self.X.shape != (n, sum(self.blocks)):
            raise DataError(f"X has shape {self.X.shape}, ids and blocks {(n, sum(self.blocks))}")
        if not len(self.blocks) == len(self.names) == len(self.keys):
            raise DataError(
                f"{counted(len(self.blocks), 'block')}, {counted(len(self.names), 'name')}, "
                f"{counted(len(self.keys), 'key')}"
            )
        if len(set(self.names)) < len(self.names):
            raise DataError(f"the same backbone twice in {', '.join(self.names)}")
        if len(self.trained_on) not in (0, len(self.blocks)):
            raise DataError(f"trained_on has {len(self.trained_on)} sets for {self.names}")
        if len(set(self.ids.tolist())) != n:
            raise DataError("image ids repeat", "Give every image an id of its own.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        blocks = " + ".join(f"{name} {d}" for name, d in zip(self.names, self.blocks, strict=True))
        parts = [f"{counted(len(self), 'row')} of {blocks}"]
        parts += [f"{n:,} {s}" for s in ("train", "val", "test") if (n := (self.split == s).sum())]
        for what, values in (("class", self.y), ("group", self.groups)):
            if n := len(set(values.tolist()) - {""}):
                parts.append(counted(n, what))
        if views := (self.view != NO_VIEW).sum():
            parts.append(f"{views:,} of them views")
        return f"Features({self.data}: {', '.join(parts)})"

    def _repr_html_(self) -> str:
        keys = self.keys
        rows = [
            (name, f"{d:,}", key[:8])
            for name, d, key in zip(self.names, self.blocks, keys, strict=True)
        ]
        return html_table(("backbone", "columns", "key"), rows, repr(self))

    @property
    def sources(self) -> Strings:
        """The id of the image that each row is of, shape (n,): `ids` without the views' names."""
        if (self.view == NO_VIEW).all():
            return self.ids
        return np.array([
            id_ if view == NO_VIEW else id_.removesuffix(f"@{view}")
            for id_, view in zip(self.ids.tolist(), self.view.tolist(), strict=True)
        ])  # fmt: skip

    def select(self, names: Sequence[str], vectors: bool = True) -> Features:
        """The same rows with only these backbones' blocks, in the order given.

        Parameters
        ----------
        names : sequence of str
        vectors : bool, default True
            False where only what is known of the rows is of use: X is then zeros, of one number's
            memory. Blocks that are not neighbours are otherwise copied.
        """
        if not names:
            raise DataError(
                "no backbone to select", f"These features have: {', '.join(self.names)}."
            )
        starts = dict(zip(self.names, np.cumsum((0, *self.blocks[:-1])), strict=True))
        for name in names:
            if name not in starts:
                raise unknown("backbone in these features", name, self.names)
        chosen = [self.names.index(name) for name in names]
        columns = np.concatenate([
            np.arange(starts[self.names[i]], starts[self.names[i]] + self.blocks[i]) for i in chosen
        ])  # fmt: skip
        if not vectors:
            X = np.broadcast_to(np.float32(0), (len(self), len(columns)))
        elif tuple(names) == self.names:
            X = self.X
        else:  # neighbouring blocks are a part of the same memory, others a copy
            together = bool((np.diff(columns) == 1).all())
            X = self.X[:, slice(int(columns[0]), int(columns[-1]) + 1) if together else columns]
        return replace(
            self,
            X=X,
            blocks=tuple(self.blocks[i] for i in chosen),
            names=tuple(self.names[i] for i in chosen),
            keys=tuple(self.keys[i] for i in chosen),
            trained_on=tuple(self.trained_on[i] for i in chosen) if self.trained_on else (),
            origins=tuple(self.origins[i] for i in chosen) if self.origins else (),
        )

    def in_order(self) -> Features:
        """The same with the backbones in the order of `canonical`, in which they are fitted."""
        return self.select(canonical(self.names))

    def rows(self, index: NDArray[Any]) -> Features:
        """The rows at `index` (positions or a boolean mask), in that order."""
        return replace(
            self,
            X=take(self.X, index),
            dhash=self.dhash[index] if len(self.dhash) else self.dhash,
            **{name: getattr(self, name)[index] for name in _PER_ROW},
        )

    def digest(self) -> str:
        """64 hex digits that change with rows, labels, groups, splits or keys; not with order."""
        columns = zip(*(getattr(self, name).tolist() for name in _PER_ROW), strict=True)
        return sha256_json({"keys": self.keys, "names": self.names, "rows": sorted(columns)})


_PER_ROW = ("y", "ids", "sha256", "groups", "split", "view")


def take(X: Floats, index: Any) -> Floats:
    """The rows of X at `index`; of a `LazyRows` without reading them."""
    return cast(Floats, X.take(index) if isinstance(X, LazyRows) else X[index])


def canonical(names: Sequence[str]) -> tuple[str, ...]:
    """The one order of a candidate's backbones, in its name, digest and columns: by name."""
    return tuple(sorted(names))


def join(parts: Sequence[Features]) -> Features:
    """Put the blocks of several backbones side by side, aligned by image id.

    The rows come in the order of the first part, the blocks in that of the backbones' names.

    Parameters
    ----------
    parts : sequence of Features
        Of the same images, in any order.

    Returns
    -------
    Features

    Raises
    ------
    DataError
        If the parts hold different images, or disagree on an image's content, label,
        group or split, or name the same backbone twice.
    """
    if not parts:
        raise DataError("nothing to join", "Pass at least one Features.")
    first = parts[0]
    names = tuple(name for part in parts for name in part.names)
    if len(set(names)) < len(names):
        raise DataError(f"the same backbone twice in {', '.join(names)}")
    blocks = [first.X]
    for part in parts[1:]:
        aligned = part.rows(_positions(first, part))
        for name in _PER_ROW:
            differs = getattr(aligned, name) != getattr(first, name)
            if differs.any():
                row = int(np.flatnonzero(differs)[0])
                raise DataError(
                    f"{name} of {first.ids[row]} is {str(getattr(first, name)[row])!r} for "
                    f"{first.names[0]} and {str(getattr(aligned, name)[row])!r} for "
                    f"{part.names[0]}",
                    "Extract both backbones from the same images.",
                )
        blocks.append(aligned.X)
    joined = replace(
        first,
        X=np.concatenate(blocks, axis=1) if len(blocks) > 1 else first.X,
        blocks=tuple(width for part in parts for width in part.blocks),
        names=names,
        keys=tuple(key for part in parts for key in part.keys),
        trained_on=tuple(
            seen for part in parts for seen in part.trained_on or (frozenset(),) * len(part.blocks)
        )
        if any(part.trained_on for part in parts)
        else (),
        origins=tuple(key for part in parts for key in part.origins)
        if all(part.origins for part in parts)
        else (),
        quantised={key: path for part in parts for key, path in part.quantised.items()},
    )
    return joined.in_order()


def _positions(first: Features, other: Features) -> NDArray[np.intp]:
    """Where each id of `first` stands in `other`."""
    where = {id_: i for i, id_ in enumerate(other.ids.tolist())}
    missing = [id_ for id_ in first.ids.tolist() if id_ not in where]
    extra = len(where) - (len(first) - len(missing))
    if missing or extra:
        example = missing[0] if missing else next(iter(set(where) - set(first.ids.tolist())))
        raise DataError(
            f"{first.names[0]} and {other.names[0]} were extracted from different images: "
            f"{counted(len(missing), 'id')} only in the first, {extra} only in the second "
            f"(for instance {example})",
            "Extract both backbones from the same images.",
        )
    return np.array([where[id_] for id_ in first.ids.tolist()], dtype=np.intp)


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
        If a view was not extracted; it names all that were not.
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
    digests: Digests,
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
    digests : uint8 array of shape (n, 32)
        Their contents: a file that another one has replaced meanwhile is refused.
    lazy : bool, default False
        Leave them in their files.

    Returns
    -------
    float32 array of shape (views * n, d1 + … + dk); a `LazyRows` of that shape where `lazy`
    """
    if lazy:
        return cast(Floats, stored_tables(tables, where, keep, digests))
    n, width = len(keep), sum(entry.dim for entry in tables[0])
    X = np.empty((n * len(tables), width), np.float32)
    rows = iter(where)
    for place, entries in enumerate(tables):
        part, start = X[place * n : (place + 1) * n], 0  # (n, width)
        for entry in entries:
            with FeatureFile(entry.path) as file:
                mine = next(rows)[keep]
                file.check_rows(mine, digests)
                file.read(mine, part[:, start : start + entry.dim])
            start += entry.dim
    return X


def columns_of(images: Images, keep: NDArray[np.intp], views: Sequence[str]) -> dict[str, Strings]:
    """What stands beside the vectors of several views: those of the images, again for each view.

    If that is all images and no view, the manifest's own arrays, not copies: a million digests
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
