"""Sources: where images come from, and how extracted ones are found again.

Folders, tables, torchvision's data sets, digits, C-NMC, time series: `SOURCES` at the foot names
them all; a source of your own is one more line there, or any `Images` passed in place of a name.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featcache.atomic import regular
from featcache.errors import DataError, UnknownData, counted, did_you_mean, unknown
from featcache.hashing import sha256_bytes
from featcache.images.cnmc import cnmc
from featcache.images.files import KINDS, SourceOptions, near_paths, suffixes
from featcache.images.location import Location, open_location
from featcache.images.manifest import (
    ORIGIN_JSON,
    Content,
    Images,
    check_name,
    from_arrays,
    row_ids,
    split_name,
    strings,
)
from featcache.images.remote import check_url, is_url, without_secrets
from featcache.images.table import ROLES, TABLES, read_class_map, table
from featcache.images.timeseries import series

Reader = Callable[[str], Content]
Pixels = NDArray[np.uint8]

log = logging.getLogger("featcache")

_SPLITS = (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test"))


def open_images(
    data: str | Path | Images = "digits",
    *,
    name: str | None = None,
    data_root: str | Path | None = None,
    group: str | None = None,
    cache: str | Path | None = "cache",
    rehash: bool = False,
    download: bool = True,
    columns: Mapping[str, str] | None = None,
    class_map: str | Path | None = None,
    digests: bool = True,
) -> Images:
    """Open a set of images.

    Parameters
    ----------
    data : str, Path or Images, default "digits"
        "digits"; a folder laid out as `class/*.jpg` or `train|val|test/class/*.jpg`; a CSV, TSV
        or Parquet file with columns path, label and perhaps split and group; the URL of one of
        these, "s3://bucket/photos", or whatever else fsspec opens;
        "torchvision:CIFAR10" and its like; "cnmc:PATH", the C-NMC 2019 challenge's folders;
        "series:PATH", time series drawn as images. "folder:PATH" and "csv:PATH" force the kind.
    name : str, optional
        The data set's name in the cache; by default the folder's or file's own.
    data_root : str or Path, optional
        For a table, the folder or URL its paths are relative to (default: the table's);
        for torchvision, where its data sets are kept (default: "data").
    group : str, optional
        For a table, the column that says which rows belong together (default: "group", if
        there is one); for a folder, "parent": the folder an image stands in.
    cache : str, Path or None, default "cache"
        Where an earlier run noted the digests of unchanged files.
    rehash : bool, default False
        Distrust those notes.
    download : bool, default True
        Let torchvision download a data set that is not there.
    columns : mapping of str to str, optional
        For a table, what it calls "path", "label", "split" and "group", where these names don't
        stand in its header in whatever case: {"label": "Diagnosis"}.
    class_map : str or Path, optional
        A CSV or JSON file with readable names for labels, which take their place.
    digests : bool, default True
        False: the files of a folder or table are listed and not read; none is known to be equal to
        another.

    Returns
    -------
    Images

    Raises
    ------
    DataError
        If nothing can be opened there; the remedy says what would be.
    """
    if isinstance(data, Images):
        return data
    if is_url(data):
        check_url(str(data))  # before it is noted anywhere
    kind, argument = _parse(str(data))
    options = SourceOptions(
        name=None if name is None else check_name(name),
        root=None if data_root is None else _root(data_root),
        group=group,
        cache=None if cache is None else Path(cache),
        rehash=rehash,
        source=str(data),
        download=download,
        columns=_checked(columns or {}),
        class_map=class_map,
        digests=digests,
    )
    names = {} if class_map is None else read_class_map(class_map)
    images = SOURCES[kind](argument, options)
    if not len(images):
        raise DataError(f"{data} holds no images")
    if names:
        images = _renamed(images, names, class_map)
    if kind in ("folder", "csv"):
        _say_classes(images)
    return replace(images, options=options.words)


def _checked(columns: Mapping[str, str]) -> Mapping[str, str]:
    for role in columns:
        if role not in ROLES:
            raise unknown("column", role, ROLES, "For instance label=Diagnosis.")
    return columns


def _renamed(images: Images, names: Mapping[str, str], where: object) -> Images:
    """The images with readable labels; a label that the map lacks stays."""
    labels = images.labels.tolist()
    lacking = sorted(set(labels) - {"", *names})
    if len(lacking) == len(set(labels) - {""}):
        raise DataError(
            f"{where} names none of the classes, for instance {lacking[0]!r}",
            f"It names {', '.join(sorted(names)[:5])}: the first column is the label.",
        )
    if lacking:
        log.warning("%s has no name for %s: %s", where, counted(len(lacking), "class"),
                    ", ".join(lacking[:5]))  # fmt: skip
    return replace(images, labels=strings([names.get(label, label) for label in labels]))


class Origin(NamedTuple):
    """Where extracted images came from, each part empty if it is not known.

    Attributes
    ----------
    source : str
        What was opened, as the user named it.
    root : str
        The folder or URL of its ids.
    options : tuple of str
        What else of the command line opened it.
    """

    source: str = ""
    root: str = ""
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str:
        """The value of an option, "" if it was not used."""
        pairs = dict(zip(self.options[::2], self.options[1::2], strict=False))
        return pairs.get(name, "")


def read_origin(folder: Path) -> Origin:
    """Where the images came from whose features are in a data set's folder of the cache."""
    try:
        plain = json.loads(regular(folder / ORIGIN_JSON).read_text(encoding="utf-8"))
        json.dumps(plain, ensure_ascii=False).encode()  # refuses halves of characters
        options = tuple(map(str, plain.get("options", ())))
        return Origin(str(plain["source"]), str(plain["root"]), options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Origin()


def reader_of(images: Images) -> Reader:
    """How to read an image by its id, of images that can be read."""
    row = {id_: i for i, id_ in enumerate(images.ids.tolist())}
    return lambda id_: images.read(row[id_])


def is_named(url: str, named: Sequence[str]) -> bool:
    """Whether a URL that was read from a file is at a place that the user named, or on no network.

    Parameters
    ----------
    url : str
    named : sequence of str
        Words of the command line, some of which may be URLs.
    """
    split = [word.lower().partition("://") for word in named if is_url(word)]
    places = {(kind.rpartition(":")[2], rest.split("/")[0]) for kind, _, rest in split}
    scheme, _, rest = url.lower().partition("://")
    return scheme in ("file", "local", "memory") or (scheme, rest.split("/")[0]) in places


def find_reader(folder: Path, images: Images, named: Sequence[str] = ()) -> Reader | None:
    """How to read an image by its id, if the images can still be found.

    Ids and places that were read from files may be somebody else's: only what has the digest in
    the manifest is given out, and no host is called that the user didn't name.

    Parameters
    ----------
    folder : Path
        The data set's folder in the cache.
    images : Images
        Its manifest; if that can read images itself, it does.
    named : sequence of str, default ()
        Words of the command line, see `is_named`.

    Returns
    -------
    callable or None
        id -> the file's bytes, or its pixels; raises OSError or KeyError for an image that is
        gone.
    """
    if images.can_read:
        return reader_of(images)
    source, root, _ = read_origin(folder)
    if is_url(root) and not is_named(root, named):
        log.info("no pictures from %s: name it with --data", without_secrets(root))
        return None
    if is_url(root):
        read = _pictures(root)
        return None if read is None else _as_listed(read, images)
    if root and Path(root).is_dir():
        return _as_listed(partial(_read_file, Path(root)), images)
    if (source or images.name) == "digits":
        return find_reader(folder, open_images("digits", cache=None))
    return None


def folder(argument: str, options: SourceOptions) -> Images:
    """`class/**/*.jpg`, or `train|val|test/class/**/*.jpg`, here or at a URL."""
    if not is_url(argument) and not Path(argument).expanduser().is_dir():
        raise UnknownData(
            f"no folder {argument!r}", f"{near_paths(argument)} Check --data.".strip()
        )
    root = open_location(argument)
    ids = root.list_images()
    if not ids:
        raise DataError(
            f"no images below {root}",
            f"Expected {root.name}/CLASS/*.jpg or {root.name}/train/CLASS/*.jpg; "
            f"known endings: {' '.join(sorted(suffixes()))}.",
        )
    parts = [id_.split("/") for id_ in ids]
    has_splits = _has_splits(root, parts)
    depth = 2 if has_splits else 1
    loose = [
        id_
        for id_, part in zip(ids, parts, strict=True)
        if len(part) <= depth or "" in part[:depth]
    ]
    if loose:
        where = "train|val|test/CLASS/" if has_splits else "CLASS/"
        flat = len(loose) == len(ids) and not has_splits
        hint = f"Is {root.name} itself a class? Then: --data {_above(argument)}\n" if flat else ""
        raise DataError(
            f"{counted(len(loose), 'image')} below {root} in no class folder, for instance "
            f"{loose[0]}",
            f"{hint}Move them to {root.name}/{where}, or list them in a CSV file: path,label.",
        )
    if options.group not in (None, *KINDS, "parent"):
        options.refuse_group("a folder")
    if not has_splits:
        _ask_about_level(argument, parts)
    groups = ["/".join(part[:-1]) for part in parts] if options.group == "parent" else None
    return root.images(
        options.name or check_name(root.name),
        ids,
        labels=[part[depth - 1] for part in parts],
        split=[split_name(part[0]) or "" for part in parts] if has_splits else None,
        groups=groups,
        options=options,
    )


def _above(argument: str) -> str:
    """The folder above one that was typed, as it would be typed."""
    plain = argument.rstrip("/")
    if plain.rpartition("/")[2] in (".", ".."):
        return f"{plain}/.."
    return plain.rpartition("/")[0] or ("/" if argument[:1] == "/" else ".")


def _ask_about_level(argument: str, parts: Sequence[Sequence[str]]) -> None:
    """Ask whether classes were meant that stand one level lower, or beside the only one."""
    classes = sorted({part[0] for part in parts})
    below = sorted({part[1] if len(part) > 2 else "" for part in parts})  # "" for images
    where = argument.rstrip("/")
    if len(classes) > 1:
        if below[0]:
            log.info(
                "the folders of the classes hold only folders, for instance %s/%s: all below %s is "
                "taken as one class. If these are the classes: --data %s/%s",
                classes[0], below[0], classes[0], where, classes[0],
            )  # fmt: skip
    elif len(below) > 1 and below[0]:
        log.warning(
            "one class only, %s, whose folder holds only folders (%s, …). If these are the "
            "classes: --data %s/%s", classes[0], ", ".join(below[:3]), where, classes[0],
        )  # fmt: skip
    else:
        log.warning("one class only, %s. Is %s itself one of the classes? Then: --data %s",
                    classes[0], where, _above(argument))  # fmt: skip


def _say_classes(images: Images) -> None:
    """The classes with their counts, as far as they fit into a line or two."""
    labels, counts = np.unique(images.labels, return_counts=True)
    pairs = [f"{label} {count:,}" for label, count in zip(labels, counts, strict=True)]
    rest = [f"and {len(pairs) - _SHOWN} more"] if len(pairs) > _SHOWN else []
    log.info("classes: %s", ", ".join(pairs[:_SHOWN] + rest))


_SHOWN = 12


def digits(argument: str, options: SourceOptions) -> Images:
    """The 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn.

    E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
    """
    if argument:
        raise unknown("data source", f"digits:{argument}", SOURCES)
    options.refuse_group("digits")
    values, target = _load_digits()
    pixels = np.rint(values * (255 / 16)).astype(np.uint8)  # (n, 8, 8), 0 … 16 before
    return from_arrays(
        options.name or "digits",
        list(pixels),
        ids=[f"{row:04d}" for row in range(len(pixels))],
        labels=[str(label) for label in target],
        source=options.source,
    )


def _load_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values (n, 8, 8) and digits (n,), from scikit-learn's file: to import it takes seconds."""
    library = importlib.util.find_spec("sklearn")
    file = Path(library.origin if library and library.origin else "") / "../datasets/data"
    try:
        table = np.loadtxt(os.path.normpath(file / "digits.csv.gz"), delimiter=",")  # (n, 65)
    except OSError:  # it is kept elsewhere
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def torchvision(argument: str, options: SourceOptions) -> Images:
    """A classification data set of `torchvision.datasets`, downloaded if it is not there."""
    options.refuse_group("a torchvision data set")
    if is_url(options.root):
        raise DataError(
            f"torchvision keeps its data in a folder, not at {options.root}",
            "Name a folder with --data-root.",
        )
    arrays, labels, split = _load_torchvision(
        argument, Path(options.root or "data"), options.download
    )
    return from_arrays(
        options.name or check_name(argument.lower()),
        arrays,
        ids=row_ids(split),
        labels=labels,
        split=split,
        source=options.source,
    )


def check_source(data: str) -> None:
    """Refuse a SPEC that means no source, before anything is imported or read for it.

    Raises
    ------
    DataError
    """
    if is_url(data):
        check_url(data)
    kind, argument = _parse(data)
    path = Path(argument).expanduser()
    if kind in ("folder", "csv") and not is_url(argument) and not path.exists():
        what = "folder" if kind == "folder" else "file"
        raise UnknownData(
            f"no {what} {argument!r}", f"{near_paths(argument)} Check --data.".strip()
        )


def _parse(data: str) -> tuple[str, str]:
    """Which source a SPEC means, and its argument."""
    kind, colon, argument = data.partition(":")
    if kind in SOURCES and (colon or kind == "digits"):
        return kind, argument
    if is_url(data):
        return "csv" if Path(data).suffix.lower() in TABLES else "folder", data
    path = Path(data).expanduser()
    if path.is_dir():
        return "folder", str(path)
    if path.suffix.lower() in TABLES and path.exists():
        return "csv", str(path)
    if path.is_file():
        raise DataError(
            f"{data} is neither a folder of images nor a table",
            "Pass a folder (class/*.jpg), or a CSV or Parquet file with columns path,label.",
        )
    if colon and len(kind) > 1 and "/" not in kind:
        raise unknown("data source", kind, SOURCES)
    near = "" if "/" in data else did_you_mean(data, ("digits",))
    near = near if near.startswith("Did") else near_paths(data) or near
    raise UnknownData(
        f"no folder or file {data!r}",
        f"{near} Pass a folder of images, a CSV file, torchvision:CIFAR10 or digits.".strip(),
    )


def _root(data_root: str | Path) -> str | Path:
    return check_url(str(data_root)) if is_url(data_root) else Path(data_root)


def _has_splits(root: Location, parts: Sequence[Sequence[str]]) -> bool:
    """Whether the top folders are splits; one alone is, if class folders stand in it."""
    top = {part[0] for part in parts if len(part) > 1}
    splits = {name for name in top if split_name(name)}
    # A class may be called train; a folder of that name that holds class folders is none.
    deep = {name for name in splits if all(len(part) > 2 for part in parts if part[0] == name)}
    has_train = "train" in {split_name(name) for name in splits}
    if splits != top and (deep or (has_train and len(splits) > 1)):
        raise DataError(
            f"{root} mixes split folders ({', '.join(sorted(splits))}) with others "
            f"({', '.join(sorted(top - splits)[:5])})",
            "Keep only train, val and test at the top, or point --data at one level. Where they "
            "are classes, list the images in a CSV file: path,label.",
        )
    return has_train and splits == top and (len(splits) > 1 or bool(deep))


def _as_listed(read: Reader, images: Images) -> Reader:
    def checked(id_: str) -> Content:
        rows = np.flatnonzero(images.ids == id_)
        if not len(rows):
            raise KeyError(id_)
        content = read(id_)
        if not isinstance(content, bytes) or sha256_bytes(content) != images.sha256[rows[0]]:
            raise OSError(f"{id_} is not the image that was extracted")
        return content

    return checked


def _read_file(root: Path, id_: str) -> bytes:
    return regular(root / id_).read_bytes()


def _pictures(url: str) -> Reader | None:
    from featcache.images.remote import pictures_at

    try:
        return pictures_at(url).read
    except DataError:  # a library is not here, for instance
        return None


def _load_torchvision(
    name: str, root: Path, download: bool = True
) -> tuple[list[Pixels], list[str], list[str]]:
    """Read every split of `torchvision.datasets.<name>`.

    Parameters
    ----------
    name : str
        As torchvision spells it: "CIFAR10", "MNIST", "SVHN", "Flowers102", …
    root : Path
        Where its files are, or go when they are downloaded.
    download : bool, default True
        Download them if they are not there.

    Returns
    -------
    arrays : list of uint8 arrays of shape (h, w) or (h, w, 3)
    labels : list of str
        Class names where the data set has them.
    split : list of str
        "train", "val", "test" or "".

    Raises
    ------
    UnknownName
        If torchvision has no such data set.
    DataError
        If it is not there and can't be downloaded, or its targets are no classes.
    """
    import torchvision.datasets as library

    known = [n for n in library.__all__ if inspect.isclass(getattr(library, n))]
    if name not in known:
        raise unknown("torchvision data set", name, known)
    arrays: list[Pixels] = []
    labels: list[str] = []
    split: list[str] = []
    for part, dataset in _splits(name, getattr(library, name), root, download):
        names = _class_names(dataset)
        for i in range(len(dataset)):
            image, target = dataset[i]
            if not isinstance(target, int | np.integer) or not hasattr(image, "convert"):
                raise DataError(f"torchvision's {name} is no image classification data set")
            arrays.append(np.asarray(image))
            labels.append(names[int(target)] if names else str(target))
        split += [part] * (len(arrays) - len(split))
    return arrays, labels, split


def _splits(name: str, cls: Any, root: Path, download: bool) -> Iterator[tuple[str, Any]]:
    accepted = inspect.signature(cls.__init__).parameters
    options: dict[str, Any] = {"root": str(root)} if "root" in accepted else {}
    if "download" in accepted:
        options["download"] = download
    if "train" in accepted:
        yield "train", _construct(name, cls, root, {**options, "train": True})
        yield "test", _construct(name, cls, root, {**options, "train": False})
    elif "split" in accepted:
        found = False
        for theirs, ours in _SPLITS:
            here = {"download": False} if "download" in options else {}
            try:
                dataset = cls(**{**options, **here, "split": theirs})
            except (ValueError, TypeError):  # this data set has no split of that name
                continue
            except (RuntimeError, OSError):
                dataset = _construct(name, cls, root, {**options, "split": theirs})
            found = True
            yield ours, dataset
        if not found:
            raise DataError(f"torchvision's {name} has no split that featcache knows")
    else:
        yield "", _construct(name, cls, root, options)


def _construct(name: str, cls: Any, root: Path, options: dict[str, Any]) -> Any:
    try:
        return cls(**options)
    except TypeError as error:
        raise DataError(f"torchvision's {name} can't be opened by name: {error}") from None
    except (OSError, RuntimeError, ValueError) as error:
        if options.get("download") is False:
            raise DataError(
                f"torchvision's {name} is not below {root.resolve()}",
                f"featcache extract downloads it. Features that are in the cache are found by the "
                f"data set's name: --data {name.lower()}",
            ) from None
        raise DataError(
            f"torchvision's {name} is not below {root.resolve()} and can't be downloaded: {error}",
            "Download it on a machine with a network, copy its files there, and pass that folder "
            "with --data-root; or point --data at a folder of images.",
        ) from None


def _class_names(dataset: Any) -> Sequence[str]:
    classes = getattr(dataset, "classes", None)
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else []


SOURCES: dict[str, Callable[[str, SourceOptions], Images]] = {
    "digits": digits,
    "folder": folder,
    "csv": table,
    "torchvision": torchvision,
    "cnmc": cnmc,
    "series": series,
}
