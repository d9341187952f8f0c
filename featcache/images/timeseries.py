"""Time series as images: Markov transition fields and Gramian angular fields.

Z. Wang, T. Oates (2015), Encoding Time Series as Images for Visual Inspection and Classification
Using Tiled Convolutional Neural Networks, AAAI Workshops.

    series:PATH[:method=mtf|gasf|gadf][:size=N][:bins=N]

Several methods joined by + become the channels of one image: method=mtf+gasf+gadf.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, RecipeError, UnknownData, counted, unknown
from featcache.images.files import SourceOptions
from featcache.images.manifest import SPLITS, Images, check_name, from_arrays, row_ids

METHODS = ("mtf", "gasf", "gadf")
_CHANNELS = 3
_LARGEST = 224
_SHORTEST = 8
_OPTION = re.compile(r":(?=[A-Za-z_]+=)")

Values = NDArray[np.float64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """How a series becomes an image.

    Attributes
    ----------
    methods : tuple of {"mtf", "gasf", "gadf"}
        One picture of each channel by each method.
    size : int or None
        Side of the image, in pixels; None for the series' length, at most 224.
    bins : int
        States of the Markov chain: quantiles of a series' own values.
    """

    methods: tuple[str, ...] = ("mtf",)
    size: int | None = None
    bins: int = 8

    def side(self, length: int) -> int:
        """Side of the images of series of this length.

        Raises
        ------
        RecipeError
            If they would be larger than the series are long.
        """
        if self.size is not None and self.size > length:
            raise RecipeError(
                f"size {self.size} is more than the {length} values of a series",
                f"At most size={length}; the network's own size is --image-size.",
            )
        return self.size or min(length, _LARGEST)

    def picture(self, series: Values) -> Pixels:
        """The image of one series.

        Parameters
        ----------
        series : float array of shape (channels, length)

        Returns
        -------
        uint8 array of shape (side, side), or (side, side, 3) of several channels
        """
        size = self.side(series.shape[1])
        planes = [
            markov_field(channel, size, self.bins) if method == "mtf"
            else angular_field(channel, size, method == "gasf")
            for channel in series for method in self.methods
        ]  # fmt: skip
        if len(planes) == 1:
            return _pixels(planes[0])
        planes += [np.zeros((size, size))] * (_CHANNELS - len(planes))
        return _pixels(np.stack(planes, axis=-1))  # (side, side, 3)


def series(argument: str, options: SourceOptions) -> Images:
    """Time series of a text table or an .npz file, each an image."""
    path, encoding = parse(argument)
    options.refuse_group("a file of time series")
    found = read_series(Path(path).expanduser())
    _refuse_unusable(path, found.values)
    channels = found.values.shape[1] * len(encoding.methods)
    if channels > _CHANNELS:
        raise DataError(
            f"{path}: {found.values.shape[1]} channels by {len(encoding.methods)} methods make "
            f"{channels} planes, and an image has {_CHANNELS}",
            "Save up to three channels, or name fewer methods.",
        )
    encoding.side(found.values.shape[2])
    words = [found.name, "+".join(encoding.methods)]
    words += [str(encoding.size)] if encoding.size else []
    words += [f"{encoding.bins}bins"] if encoding.bins != Encoding.bins else []
    return from_arrays(
        options.name or check_name("-".join(words)),
        _Pictures(found.values, encoding),
        ids=row_ids(found.split),
        labels=found.labels,
        split=found.split,
        groups=found.groups,
        source=options.source,
    )


def is_there(source: str) -> bool:
    """Whether a source, as the user named it, is a file of time series that can be found."""
    kind, _, argument = source.partition(":")
    return kind == "series" and Path(parse(argument)[0]).expanduser().exists()


def parse(argument: str) -> tuple[str, Encoding]:
    """`PATH:method=gasf:size=64` as a path and an encoding.

    Raises
    ------
    UnknownName, RecipeError
        For an option or a value that there is not.
    """
    path, *parts = _OPTION.split(argument)
    options: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in ("method", "size", "bins"):
            raise unknown("option of series", name, ("method", "size", "bins"))
        if name == "method":
            methods = tuple(value.split("+"))
            for method in methods:
                if method not in METHODS:
                    raise unknown("method of series", method, METHODS)
            options["methods"] = methods
        elif not value.isdecimal() or int(value) < 2:
            raise RecipeError(f"series: {name} {value!r} is no number above 1", f"{name}=64")
        else:
            options[name] = int(value)
    if not path:
        raise RecipeError("series: no file named", "For instance series:GunPoint_TRAIN.tsv.")
    return path, Encoding(**options)


def markov_field(series: Values, size: int, bins: int) -> Values:
    """How probable it is to go from each value's bin to each other's, in 0 … 1.

    Parameters
    ----------
    series : float array of shape (length,)
    size : int
        Values in one window are averaged: the result has shape (size, size).
    bins : int
        Quantiles; fewer where values repeat.
    """
    edges = np.unique(np.quantile(series, np.linspace(0, 1, bins + 1)[1:-1]))
    states = np.searchsorted(edges, series)  # (length,)
    count = np.zeros((len(edges) + 1, len(edges) + 1))
    np.add.at(count, (states[:-1], states[1:]), 1)
    moves = count / np.maximum(count.sum(axis=1, keepdims=True), 1)  # (bins, bins), rows sum to 1
    shares = _averaged(np.eye(len(edges) + 1)[states], size)  # (size, bins)
    field: Values = shares @ moves @ shares.T  # (size, size)
    return field


def angular_field(series: Values, size: int, summation: bool) -> Values:
    """cos(a + b), or sin(a - b), of the angles whose cosines are the values; scaled to 0 … 1.

    Parameters
    ----------
    series : float array of shape (length,)
    size : int
        Values in one window are averaged first: the result has shape (size, size).
    summation : bool
        The sum's cosine (GASF), else the difference's sine (GADF).
    """
    x = _averaged(series[:, None], size)[:, 0]  # (size,)
    low, high = x.min(), x.max()
    cos = np.clip((2 * x - low - high) / ((high - low) or 1.0), -1, 1)
    sin = np.sqrt(1 - cos**2)
    field: Values
    if summation:
        field = np.outer(cos, cos) - np.outer(sin, sin)
    else:
        field = np.outer(sin, cos) - np.outer(cos, sin)
    return (field + 1) / 2


def _averaged(values: Values, size: int) -> Values:
    """Means over `size` windows of rows, as long as each other but for one; (size, columns)."""
    begin = np.linspace(0, len(values), size + 1).astype(np.int64)  # piecewise aggregation
    sums: Values = np.add.reduceat(values, begin[:-1], axis=0)
    return sums / np.diff(begin)[:, None]


def _pixels(field: Values) -> Pixels:
    """0 … 1 as 0 … 255; halves go up, whatever the last bit is that a machine computes."""
    return np.floor(np.round(field * 255, 6) + 0.5).astype(np.uint8)


class _Pictures(Sequence[Pixels]):
    """Images made when they are asked for: all at once they can be gigabytes."""

    def __init__(self, values: Values, encoding: Encoding) -> None:
        self._values = values
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        return self._encoding.picture(self._values[row])


def _refuse_unusable(path: str, values: Values) -> None:
    if values.shape[2] < _SHORTEST:
        raise DataError(
            f"{path}: series of {values.shape[2]} values are too short for an image",
            f"They need {_SHORTEST} or more. The first column is the label.",
        )
    for what, bad, remedy in (
        ("hold NaN or infinite values", np.any(~np.isfinite(values), axis=(1, 2)),
         "Fill or cut them. The UCR archive has mended ones in the folder "
         "Missing_value_and_variable_length_datasets_adjusted."),
        ("are constant: they have no shape to see", np.any(np.ptp(values, axis=2) == 0, axis=1),
         "Take them out."),
    ):  # fmt: skip
        rows = np.flatnonzero(bad)
        if len(rows):
            raise DataError(
                f"{path}: {len(rows)} of {len(values):,} series {what} (the first: number "
                f"{rows[0] + 1})",
                remedy,
            )


_HALF = re.compile(r"(.+)_(TRAIN|TEST)", re.IGNORECASE)
_OTHER = {"train": "test", "test": "train"}


@dataclass(frozen=True)
class Series:
    """Labelled time series of one length.

    Attributes
    ----------
    name : str
        The data set's.
    values : float64 array of shape (n, channels, length)
    labels, split, groups : list of str
        "" where there is none.
    """

    name: str
    values: NDArray[np.float64]
    labels: list[str]
    split: list[str]
    groups: list[str]


def read_series(path: Path) -> Series:
    """Read a file, and of NAME_TRAIN and NAME_TEST both.

    Parameters
    ----------
    path : Path
        A table without header, label first (.tsv, .txt, .csv, any ending); an .npz file with X of
        shape (n, length) or (n, channels, length), y, and perhaps split and group; or a folder
        with NAME_TRAIN and NAME_TEST of such.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise UnknownData(f"no file {str(path)!r}", "For instance series:GunPoint_TRAIN.tsv.")
    halves = _halves(path)
    parts = [_read(half, split) for split, half in halves.items()]
    lengths = {part.values.shape[1:] for part in parts}
    if len(lengths) > 1:
        shown = " and ".join(f"{c} × {t}" for c, t in (part.values.shape[1:] for part in parts))
        raise DataError(f"{', '.join(map(str, halves.values()))}: series of {shown} values",
                        "All must have one length; cut or resample them.")  # fmt: skip
    found = _HALF.fullmatch(path.stem)
    return Series(
        name=found[1] if found else path.stem,
        values=np.concatenate([part.values for part in parts]),
        labels=[label for part in parts for label in part.labels],
        split=[split for part in parts for split in part.split],
        groups=[group for part in parts for group in part.groups],
    )


def _in_folder(folder: Path) -> Path:
    found = sorted(p for p in folder.iterdir() if p.is_file() and _HALF.fullmatch(p.stem))
    names = {_HALF.sub(r"\1", path.stem) + path.suffix for path in found}
    if len(names) > 1:  # the archive's older form has the same as .txt, .arff and .ts
        found = [path for path in found if path.suffix == ".tsv"] or found
        names = {_HALF.sub(r"\1", path.stem) + path.suffix for path in found}
    if len(names) != 1:
        shown = f" (there are {', '.join(sorted(names)[:5])})" if names else ""
        raise DataError(
            f"{folder} is not the folder of one data set{shown}",
            "Name its file: series:FOLDER/NAME_TRAIN.tsv",
        )
    return found[0]


def _halves(path: Path) -> dict[str, Path]:
    """Split -> file: of NAME_TRAIN and NAME_TEST both, if both are there; else "" -> the file."""
    found = _HALF.fullmatch(path.stem)
    if found is None:
        return {"": path}
    own = found[2].lower()
    other = _OTHER[own] if found[2].islower() else _OTHER[own].upper()
    twin = path.with_name(f"{found[1]}_{other}{path.suffix}")
    if not twin.is_file():
        return {"": path}
    return dict(sorted({own: path, _OTHER[own]: twin}.items(), reverse=True))  # train first


def _read(path: Path, split: str) -> Series:
    try:
        if path.suffix.lower() == ".npz":
            return _read_npz(path, split)
        values, labels = _read_table(path)
    except (OSError, UnicodeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} can't be read as time series: {error}") from None
    n = len(labels)
    return Series(path.stem, values, labels, [split] * n, [""] * n)


def _read_npz(path: Path, split: str) -> Series:
    with np.load(path, allow_pickle=False) as file:
        for name in ("X", "y"):
            if name not in file:
                raise DataError(f"{path} has no array {name!r} (it has: {', '.join(file)})",
                                "np.savez(path, X=…, y=…): X of shape (n, length).")  # fmt: skip
        values, n = file["X"], len(file["y"])
        if values.dtype.kind not in "fiub" or values.ndim not in (2, 3) or len(values) != n:
            raise DataError(
                f"{path}: X is {values.dtype} of shape {values.shape}, and y has "
                f"{counted(n, 'label')}",
                "X has shape (n, length) or (n, channels, length), y (n,).",
            )
        columns = {name: [str(v) for v in file[name]] if name in file else [""] * n
                   for name in ("split", "group")}  # fmt: skip
        labels = [_label(str(label)) for label in file["y"].tolist()]
    for name, column in columns.items():
        if len(column) != n:
            raise DataError(f"{path}: {name} has {counted(len(column), 'row')}, and y has {n}")
    if odd := set(columns["split"]) - {"", *SPLITS}:
        raise DataError(f"{path}: {sorted(odd)[0]!r} is no split", "Use train, val or test.")
    own = [split] * n if split else columns["split"]
    return Series(path.stem, _three(values), labels, own, columns["group"])


def _three(values: NDArray[Any]) -> NDArray[np.float64]:
    """As (n, channels, length)."""
    return values.astype(np.float64).reshape(len(values), -1, values.shape[-1])


def _read_table(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    with path.open(encoding="utf-8-sig") as file:
        lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty")
    separator = next((mark for mark in "\t,;" if mark in lines[0][1]), None)
    rows = [(number, line.split(separator)) for number, line in lines]
    if len(rows) > 1 and not _numbers(rows[0][1]) and _numbers(rows[1][1]):
        del rows[0]  # a header
    width = len(rows[0][1])
    for number, cells in rows:
        if len(cells) != width:
            raise DataError(
                f"{path}, line {number}: {counted(len(cells) - 1, 'value')}, and {width - 1} above",
                "All series must have one length; cut or resample them.",
            )
        if not _numbers(cells):
            raise DataError(
                f"{path}, line {number}: not all cells after the label are numbers",
                "One series a line: its label, then its values.",
            )
    values = np.array([cells[1:] for _, cells in rows], dtype=np.float64)  # (n, length)
    return _three(values), [_label(cells[0].strip()) for _, cells in rows]


def _numbers(cells: Sequence[str]) -> bool:
    """Whether all but the first cell, the label, are numbers; NaN is one."""
    try:
        np.array(cells[1:], dtype=np.float64)
    except ValueError:
        return False
    return True


def _label(text: str) -> str:
    """ "1" for "1.0000000e+00", as older files of the archive have it; other labels as they are."""
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if value.is_integer() else text
