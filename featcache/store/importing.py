"""Importing: vectors that other tools wrote become a block of a data set, like any other.

Their key has the library "import", the stated origin in place of weights, and the digest of the
files. Such a block is called `import:NAME`, compares and fuses as others do, and can only be made
by importing the files again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, RecipeError, counted
from featcache.images.manifest import Images
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, positions, to_digests
from featcache.store.features import Features
from featcache.store.key import IMPORT, Key
from featcache.store.locking import begin, lock
from featcache.store.spec import IMPORTED
from featcache.store.vector_files import Vectors, read_vectors

UNKNOWN = "unknown"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_ORIGIN = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")  # no control characters
_LONGEST = 120  # bytes of an origin, which is a part of the file's name
_SAME = 0.99  # least cosine between vectors of one content, which other tools may have got twice
_SHOWN = 3


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes
    ----------
    path : Path
        The feature file.
    key : Key
    rows : int
        Vectors in it, one for each content.
    left_out : int
        Vectors of images that are not in the data set.
    new : bool
        False if they were all there already.
    """

    path: Path
    key: Key
    rows: int
    left_out: int
    new: bool


def import_features(
    files: str | Path | Iterable[str | Path],
    data: str | Path | Images,
    *,
    name: str,
    origin: str = UNKNOWN,
    vectors: str | None = None,
    ids: str | None = None,
    cache: str | Path = "cache",
) -> Features:
    """Take vectors that another tool wrote into the cache, and load them.

    Parameters
    ----------
    files : str, Path, or several
        `.npz`, `.npy` with a `.csv` of its ids, `.parquet`, `.h5`; a folder of `.h5` files. See
        `featcache.store.vector_files` for what is expected in them.
    data : str, Path or Images
        A data set in the cache, or what `open_images` takes: the images that the vectors are of.
        An id is an image's id (its path relative to the root), its sha256, or the name of its
        file without the ending, if that is unique.
    name : str
        What the block is called, after "import:": for instance "uni".
    origin : str, default "unknown"
        Where the vectors come from, for instance "UNI2-h, TRIDENT 0.2, 20x": part of the key.
    vectors, ids : str, optional
        Names of the arrays or columns in the files, if they are not usual ones.
    cache : str or Path, default "cache"
        The cache folder.

    Returns
    -------
    Features
        One block, `import:NAME`.

    Raises
    ------
    DataError
        If a file can't be used, or an image has no vector in it.
    """
    store = Cache(cache)
    images = images_for(store, data)
    several = [files] if isinstance(files, str | Path) else files
    done = import_vectors(store, images, read_vectors(several, vectors, ids), name, origin)
    selector = f"{done.key.backbone}@{done.key.digest}"
    return store.features(images, store.choose(images.name, [selector]))


def images_for(store: Cache, data: str | Path | Images) -> Images:
    """The images that vectors are imported for: of a data set in the cache, or opened."""
    if isinstance(data, str) and data in store.data_sets() and not Path(data).exists():
        return store.images(data)
    images = open_images(data, cache=store.folder)
    store.note_images(images)
    return images


def import_vectors(
    store: Cache, images: Images, vectors: Vectors, name: str, origin: str = UNKNOWN
) -> Imported:
    """Put vectors into the cache, aligned with a data set's images.

    Raises
    ------
    RecipeError
        For a name or origin that can't be one.
    DataError
        If an image has no vector, or images of equal content have different ones.
    """
    key = _key(vectors, name, origin)
    failed = store.failed(images.name)
    needed = ~np.isin(images.sha256, list(failed))
    where = align(images, vectors.ids, needed)
    kept = images.distinct()
    kept = kept[where[kept] >= 0]
    _refuse_disagreement(images, vectors, where, kept)
    digests = to_digests(images.sha256[kept])
    left_out = len(vectors.ids) - len(set(where[where >= 0].tolist()))
    path = store.path(images.name, key)
    new = bool(store.missing(images.name, key, digests).any())
    if new:
        with lock(store, images.name, key):
            file = begin(store, images.name, key, digests, vectors.X.shape[1])
            with file:
                rows = positions(digests, file.digests)
                todo = np.flatnonzero(~file.done()[rows])
                file.write(rows[todo], vectors.X[where[kept[todo]]])
                file.finish(path, ~file.done())
    with FeatureFile(path) as file:
        return Imported(path, key, len(file), left_out, new)


def _key(vectors: Vectors, name: str, origin: str) -> Key:
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{name!r} can't be a block's name",
            "Letters, digits and _ . + - only, at most 64: for instance --as uni2-h.",
        )
    if not _ORIGIN.fullmatch(origin) or len(origin.encode()) > _LONGEST:
        raise RecipeError(
            f"{origin[:30]!r} can't be an origin", f"One line of at most {_LONGEST} bytes."
        )
    layer = "patches:mean" if vectors.pooled else "vectors"
    return Key(f"{IMPORTED}{name}", IMPORT, origin, vectors.sha256, layer, {}, UNKNOWN)


def align(images: Images, ids: Sequence[str], needed: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The place of each image among ids of another tool, shape (n,); -1 for one without.

    An id is an image's own, its sha256, or its file's name without the ending. Whichever places
    most vectors is taken for all of them.

    Parameters
    ----------
    images : Images
    ids : sequence of str
    needed : bool array of shape (n,)
        Images that must be found.

    Raises
    ------
    DataError
        If one isn't found, or an id means several images.
    """
    own = {_relative(id_, images.root): row for row, id_ in enumerate(ids)}
    if len(own) < len(ids):
        twice = Counter(_relative(id_, images.root) for id_ in ids).most_common(1)[0][0]
        raise DataError(f"two vectors of {twice}", "Keep one vector for each id.")
    contents = {id_.lower(): row for row, id_ in enumerate(ids)}
    stems = [PurePosixPath(id_).stem for id_ in images.ids.tolist()]
    wanted = set(stems)
    theirs = [_stem(id_, wanted) for id_ in own]
    stem_of = dict(zip(theirs, own.values(), strict=True))
    ways = (
        np.array([own.get(id_, -1) for id_ in images.ids.tolist()], np.intp),
        np.array([contents.get(sha256, -1) for sha256 in images.sha256.tolist()], np.intp),
        np.array([stem_of.get(stem, -1) for stem in stems], np.intp),
    )
    best = max(range(len(ways)), key=lambda way: len(np.unique(ways[way][ways[way] >= 0])))
    where = ways[best]
    if not (where >= 0).any():
        raise DataError(
            f"not one of {counted(len(ids), 'vector')} is of an image of {images.name}: their ids "
            f"are like {ids[0]!r}, those of the images like {str(images.ids[0])!r}",
            "An id must be an image's path relative to the data's root, its sha256, or the name "
            "of its file without the ending.",
        )
    if best == len(ways) - 1:
        _refuse_ambiguity([s for s, row in zip(stems, where, strict=True) if row >= 0],
                          "images", images.name)  # fmt: skip
        _refuse_ambiguity([s for s in theirs if s in wanted], "vectors", images.name)
    missing = np.flatnonzero((where < 0) & needed)
    if len(missing):
        shown = ", ".join(images.ids[missing[:_SHOWN]].tolist())
        raise DataError(
            f"{len(missing)} of {counted(len(images), 'image')} of {images.name} have no vector: "
            f"{shown}",
            "Embed them too, or leave them out of the data set.",
        )
    return where


def _relative(id_: str, root: str) -> str:
    """An id as images have them, of a path as any system writes it."""
    plain = id_.strip().replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain.removeprefix(f"{root.rstrip('/')}/") if root else plain


def _stem(id_: str, wanted: set[str]) -> str:
    """The name that stands for an image's file; what follows a dot may be a part of it."""
    last = id_.rpartition("/")[2]
    return last if last in wanted else PurePosixPath(last).stem


def _refuse_ambiguity(stems: Sequence[str], what: str, data: str) -> None:
    often, count = Counter(stems).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{count} {what} of {data} are called {often!r}: which vector is whose can't be told",
            "Write the ids as paths relative to the data's root.",
        )


def _refuse_disagreement(
    images: Images, vectors: Vectors, where: NDArray[np.intp], kept: NDArray[np.intp]
) -> None:
    """Equal images have equal vectors, unless ids or rows were mixed up."""
    first: Mapping[str, int] = {str(images.sha256[row]): row for row in kept.tolist()}
    for row in np.setdiff1d(np.flatnonzero(where >= 0), kept).tolist():
        other = first[str(images.sha256[row])]
        a, b = (vectors.X[where[place]].astype(np.float64) for place in (row, other))
        if a @ b < _SAME * np.sqrt((a @ a) * (b @ b)):
            raise DataError(
                f"{images.ids[other]} and {images.ids[row]} are the same image, and have "
                "different vectors",
                "Check that ids and vectors are in the same order.",
            )
