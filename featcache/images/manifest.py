"""Images: one row per image, and how to read one; and the images.csv that keeps the rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.atomic import regular, replacing
from featcache.csv_cells import read_cell, row_writer
from featcache.display import html_table
from featcache.errors import DataError, counted
from featcache.hashing import sha256_array, sha256_bytes, sha256_file
from featcache.images.dhash import Hashes, no_hashes, to_cells, to_hashes

IMAGES_CSV = "images.csv"
ORIGIN_JSON = "origin.json"  # beside it: where the images were, so that a report can show some
SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
    "": "",
}  # fmt: skip
_SHOWN = 20  # classes in a notebook
_LISTS = 4  # as many extractions may write the list at the same time
_LONGEST_LINE = 2**20  # characters
_AT_ONCE = 2**16  # rows of a table read or written together
_LONGEST_NAME = 200  # bytes; file systems take 255 or fewer
_LONGEST_LABEL = 1000  # characters; csv reads 131,072, and each row takes as many as the longest
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # tables and pages bear \t and \n
_HEX = re.compile("[0-9a-f]{64}")
_COLUMNS = ("id", "sha256", "label", "group", "split", "size", "mtime_ns")
_DHASH = "dhash"  # a further column, as soon as any is known

Content = bytes | NDArray[Any]
RowReader = Callable[[int], Content]
Strings = NDArray[np.str_]


def _not_here(_: int) -> Content:
    raise DataError(
        "this manifest comes from the cache and knows no images",
        "Open the images themselves, for instance open_images('path/to/folder').",
    )


@dataclass(frozen=True, eq=False)
class Images:
    """A manifest: what there is to embed, row by row.

    Attributes
    ----------
    name : str
        The data set's name; its folder in the cache.
    ids : str array of shape (n,)
        Path relative to the root, with forward slashes; unique.
    sha256 : str array of shape (n,)
        Hex digest of the content: equal digests are equal images.
    labels, groups, split : str array of shape (n,)
        "" where there is none; `split` is "train", "val", "test" or "".
    read : callable
        Row number -> the file's bytes, or a uint8 array of shape (h, w) or (h, w, 3). One that has
        a method `part(rows)`, which gives a reader of these rows alone (counted from 0) that can be
        pickled, lets worker processes read.
    size, mtime_ns : int64 array of shape (n,)
        For files: length in bytes and time of change in nanoseconds, by which a later run
        knows that the digest still holds; 0 where it must be taken again. For objects at a URL
        the latter is any number that changes with them.
    source : str
        What was opened, as the user named it.
    root : str
        For files, the folder that the ids are relative to, as an absolute path or a URL; else "".
    options : tuple of str
        What the command line needs besides the source to open them again, as "--group", "subject".
    dhash : uint8 array of shape (n, 32) or (0, 32)
        What near duplicates are found by, see `featcache.images.dhash`; zeros where it is not
        known. Extraction computes it.
    absent : tuple of str
        Ids that were listed and are not there; they have no row.
    """

    name: str
    ids: Strings
    sha256: Strings
    labels: Strings
    groups: Strings
    split: Strings
    read: RowReader = field(default=_not_here, repr=False)
    size: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    mtime_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    source: str = ""
    root: str = ""
    options: tuple[str, ...] = ()
    dhash: Hashes = field(default_factory=no_hashes, repr=False)
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(self.dhash) not in (0, n):
            raise DataError(f"dhash has {counted(len(self.dhash), 'row')}, ids has {n}")
        for name in ("sha256", "labels", "groups", "split"):
            if len(getattr(self, name)) != n:
                raise DataError(
                    f"{name} has {counted(len(getattr(self, name)), 'row')}, ids has {n}"
                )
        if len(set(self.ids.tolist())) != n:
            raise DataError(f"image ids repeat in {self.name}", "Give every image its own id.")
        odd = sorted(set(self.split.tolist()) - {"", *SPLITS})
        if odd:
            raise DataError(f"{odd[0]!r} is no split", "Use train, val, test or nothing.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Images({self.describe()})"

    def _repr_html_(self) -> str:
        labels, counts = np.unique(self.labels, return_counts=True)
        rows = [(str(label) or "(none)", f"{n:,}") for label, n in zip(labels, counts, strict=True)]
        more = [f"and {len(rows) - _SHOWN:,} classes more"] if len(rows) > _SHOWN else []
        return html_table(("class", "images"), rows[:_SHOWN], repr(self), more)

    @property
    def can_read(self) -> bool:
        """Whether it knows the images themselves, not only their rows."""
        return self.read is not _not_here

    def describe(self) -> str:
        """One line: how many images, classes, and rows in each split."""
        classes = len(set(self.labels.tolist()) - {""})
        parts = [counted(len(self), "image"), counted(classes, "class")]
        parts += [f"{n:,} {s}" for s in SPLITS if (n := int((self.split == s).sum()))]
        groups = len(set(self.groups.tolist()) - {""})
        if groups:
            parts.append(counted(groups, "group"))
        return f"{self.name}: {', '.join(parts)}"

    def distinct(self) -> NDArray[np.intp]:
        """Row numbers of the first image of each content, in the order of the manifest."""
        # As bytes: sorting the text would take four times as much again.
        _, first = np.unique(self.sha256.astype(np.bytes_), return_index=True)
        return np.sort(first)


def make_images(
    name: str,
    ids: Sequence[str],
    sha256: Iterable[str],
    *,
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    **rest: Any,
) -> Images:
    """The manifest of these columns; groups and split may be left out. `rest` as in `Images`."""
    for kind, column in (("label", labels), ("group", groups or ())):
        _refuse_odd(kind, column)
    empty = [""] * len(ids)
    return Images(
        name,
        strings(ids),
        strings(sha256),
        strings(labels),
        strings(groups or empty),
        strings(split or empty),
        **rest,
    )


def _refuse_odd(kind: str, column: Sequence[str]) -> None:
    """Names that tables can't keep, or pages can't show."""
    for text in set(column):
        if _CONTROL.search(text):
            raise DataError(
                f"the {kind} {text[:100]!a} holds control characters",
                "Rename it, or list the images in a CSV file: path,label.",
            )
        if len(text) > _LONGEST_LABEL:
            raise DataError(
                f"the {kind} {text[:30]!a}… has {len(text):,} characters, more than "
                f"{_LONGEST_LABEL:,}",
                "Give it a name.",
            )


def split_name(text: str) -> str | None:
    """The split that a folder or cell called `text` means, "" for none, None if it means none."""
    return _SPLIT_NAMES.get(text.strip().lower())


def check_name(name: str) -> str:
    """A data set's name, checked to be a plain folder name."""
    if not name or name in (".", "..") or any(c in name for c in '/\\:*?"<>|\0'):
        raise DataError(
            f"{name!r} can't be a data set's name", "Pass a plain name, for instance --name cells."
        )
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise DataError(
            f"the data set's name {name[:20]}… is longer than {_LONGEST_NAME} bytes",
            "Pass a shorter one, for instance --name cells.",
        )
    return name


def strings(values: Iterable[object]) -> Strings:
    """A str array; empty input gives an empty str array."""
    return np.array([str(value) for value in values], dtype=np.str_)


def write_images_csv(path: Path, images: Images) -> None:
    """Write the manifest's rows beside their features, all or nothing; and origin.json.

    That holds the list's sha256, for `read_images_csv`, and those of a few lists before it: it is
    written first, so that at any moment the list that is there is among them.
    """
    none = np.zeros(len(images), np.int64)
    columns: Sequence[NDArray[Any]] = (
        images.ids, images.sha256, images.labels, images.groups, images.split,
        images.size if len(images.size) else none,
        images.mtime_ns if len(images.mtime_ns) else none,
    )  # fmt: skip
    header: tuple[str, ...] = _COLUMNS
    if images.dhash.any():
        header, columns = (*_COLUMNS, _DHASH), (*columns, images.dhash)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _write_table(temporary, header, _InParts(columns))
        before = _known_lists(path)
        if before is None:  # none, or one of an older version
            before = [sha256_file(path)] if path.is_file() else []
        lists = list(dict.fromkeys([sha256_file(temporary), *before]))[:_LISTS]
        plain: dict[str, Any] = {"source": images.source, "root": images.root}
        plain |= {"options": images.options} if images.options else {}
        with replacing(path.with_name(ORIGIN_JSON)) as origin:
            origin.write_text(json.dumps(plain | {"lists": lists}) + "\n", encoding="utf-8")


class _InParts:
    """Rows of columns, of which only some thousand at a time are Python objects."""

    def __init__(self, columns: Sequence[NDArray[Any]]) -> None:
        self._columns = columns

    def __iter__(self) -> Iterator[tuple[object, ...]]:
        for start in range(0, len(self._columns[0]), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            yield from zip(*(_cells(column[part]) for column in self._columns), strict=True)


def _cells(column: NDArray[Any]) -> list[Any]:
    return column.tolist() if column.ndim == 1 else to_cells(column)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _write_table(temporary, header, rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        write = row_writer(file)
        write(header)
        for row in rows:
            write(row)
        file.flush()
        os.fsync(file.fileno())


def read_images_csv(path: Path, name: str) -> Images:
    """The manifest that `write_images_csv` wrote; it can't read images.

    Raises
    ------
    DataError
        If the file is not such a table, or not the one that was written.
    """
    columns, dhash = _read_columns(path)
    ids, sha256, labels, groups, split = columns[:5]
    try:
        size, mtime_ns = (column.astype(np.int64) for column in columns[5:])
        return Images(
            name, ids, sha256, labels, groups, split, size=size, mtime_ns=mtime_ns,
            source=name, dhash=dhash,
        )  # fmt: skip
    except (ValueError, OverflowError) as error:
        raise _unreadable(path, str(error)) from None


def _read_columns(path: Path) -> tuple[list[Strings], Hashes]:
    """The columns, put together from pieces: as Python's strings a million rows take 900 MB."""
    rows, pieces, hashes = _rows(path), [[strings(())] for _ in _COLUMNS], [no_hashes()]
    while some := list(islice(rows, _AT_ONCE)):
        *columns, dhash = zip(*some, strict=True)
        for column, values in zip(pieces, columns, strict=True):
            column.append(strings(values))
        hashes.append(to_hashes(list(dhash)))
    found = np.concatenate(hashes)
    return [np.concatenate(pieces.pop(0)) for _ in _COLUMNS], found if found.any() else no_hashes()


def _rows(path: Path) -> Iterator[list[str]]:
    """The cells of each row, with "" for the dhash in lists that have none."""
    try:
        regular(path)
    except OSError as error:
        raise _unreadable(path, str(error)) from None
    try:
        with path.open("rb") as binary:
            lists = _known_lists(path)
            if lists is not None and hashlib.file_digest(binary, "sha256").hexdigest() not in lists:
                raise _unreadable(path, "it is damaged, or was edited")
            binary.seek(0)
            file = io.TextIOWrapper(binary, newline="", encoding="utf-8")
            reader = csv.reader(iter(partial(file.readline, _LONGEST_LINE), ""))
            header = next(reader, [])
            hashed = header[len(_COLUMNS) :] == [_DHASH]
            if tuple(header) != _COLUMNS + (_DHASH,) * hashed:
                raise _unreadable(path, f"its columns are {', '.join(header)}")
            for row in reader:
                if len(row) != len(header):
                    raise _unreadable(
                        path, f"line {reader.line_num} has {counted(len(row), 'cell')}"
                    )
                if not _HEX.fullmatch(row[1]):
                    raise _unreadable(path, f"line {reader.line_num} has no sha256: {row[1]!r}")
                if row[4] not in ("", *SPLITS):
                    raise _unreadable(path, f"line {reader.line_num}: {row[4]!r} is no split")
                if hashed and row[-1] and not _HEX.fullmatch(row[-1]):
                    raise _unreadable(path, f"line {reader.line_num}: {row[-1]!r} is no dhash")
                cells = [read_cell(text) for text in row]
                yield cells if hashed else [*cells, ""]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, str(error)) from None


def _known_lists(path: Path) -> list[str] | None:
    """The sha256 of lists of images that origin.json tells of; None if it tells of none."""
    try:
        text = regular(path.with_name(ORIGIN_JSON)).read_text(encoding="utf-8")
        return [str(sha256) for sha256 in json.loads(text)["lists"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a list of images that featcache wrote: {why}",
        "Delete it and run the extract command again: features on disk are kept.",
    )


def from_arrays(
    name: str,
    arrays: Sequence[np.ndarray[Any, Any]],
    *,
    ids: Sequence[str],
    labels: Sequence[str],
    split: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    source: str = "memory",
) -> Images:
    """The manifest of images in memory.

    Parameters
    ----------
    name : str
        The data set's name.
    arrays : sequence of uint8 arrays of shape (h, w) or (h, w, 3)
        The images.
    ids, labels, split, groups : sequence of str
        One for each image; split and groups may be left out.
    source : str, default "memory"
        What the manifest says of its origin.
    """
    return make_images(
        check_name(name),
        ids,
        (sha256_array(array) for array in arrays),
        labels=labels,
        groups=groups,
        split=split,
        read=arrays.__getitem__,
        source=source,
    )


def row_ids(split: Sequence[str]) -> list[str]:
    """Ids for rows that have no names: their split, and their number among its rows."""
    count: dict[str, int] = {}
    ids = []
    for part in split:
        row = count.setdefault(part, 0)
        ids.append(f"{part or 'all'}/{row:06d}")
        count[part] += 1
    return ids


def subsample(images: Images, most: int, seed: int = 0) -> Images:
    """At most so many images of each class, drawn at random, as a data set of its own.

    The splits keep their shares of a class, as nearly as whole images allow, and each that has
    images of it keeps one at least, where `most` allows. Rows keep their order.

    Parameters
    ----------
    images : Images
    most : int
        Images of a class, over all splits together.
    seed : int, default 0

    Returns
    -------
    Images
        Called `<name>-<most>`, so that a cache never takes it for the whole.
    """
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for label in np.unique(images.labels).tolist():
        mine = np.flatnonzero(images.labels == label)
        parts = [mine[images.split[mine] == name] for name in np.unique(images.split[mine])]
        shares = _shares([len(part) for part in parts], most)
        for part, share in zip(parts, shares, strict=True):
            kept += rng.permutation(part)[:share].tolist()
    rows = np.sort(np.array(kept, np.intp))
    where = rows.tolist()

    def take(column: NDArray[Any]) -> NDArray[Any]:
        return column[rows] if len(column) else column

    return replace(
        images,
        name=check_name(f"{images.name}-{most}"),
        ids=take(images.ids),
        sha256=take(images.sha256),
        labels=take(images.labels),
        groups=take(images.groups),
        split=take(images.split),
        size=take(images.size),
        mtime_ns=take(images.mtime_ns),
        dhash=take(images.dhash),
        read=rows_alone(images.read, rows) or (lambda row: images.read(where[row])),
    )


def has_changed(content: Content, sha256: str) -> bool:
    """Whether a file's bytes are others than those that were listed; pixels never are."""
    return isinstance(content, bytes) and sha256_bytes(content) != sha256


def rows_alone(read: RowReader, rows: NDArray[np.intp]) -> RowReader | None:
    """A reader of these rows, counted from 0, for another process; None if `read` gives none."""
    part = getattr(read, "part", None)
    return None if part is None else part(rows)


def _shares(counts: list[int], most: int) -> list[int]:
    """`most` divided in proportion to the counts, by the largest remainders; 1 each at least."""
    total = sum(counts)
    if total <= most:
        return counts
    exact = [most * count / total for count in counts]
    shares = [max(1, int(share)) for share in exact]
    by_rest = sorted(range(len(counts)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_rest:
        if sum(shares) < most and shares[i] < counts[i]:
            shares[i] += 1
    while sum(shares) > most and max(shares) > 1:
        shares[shares.index(max(shares))] -= 1
    return shares
