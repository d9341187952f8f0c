"""Time series as images: Markov transition fields and Gramian angular fields.

Z. Wang, T. Oates (2015), Encoding Time Series as Images for Visual Inspection and Classification
Using Tiled Convolutional Neural Networks, AAAI Workshops.

    series:PATH[:method=mtf|gasf|gadf][:size=N][:bins=N]

Several methods joined by + become the channels of one image: method=mtf+gasf+gadf.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, RecipeError, unknown
from featcache.images.arrays import from_arrays, row_ids
from featcache.images.manifest import Images, check_name
from featcache.images.options import Options
from featcache.images.series_files import read_series

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
            Where they would be larger than the series are long.
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


def series(argument: str, options: Options) -> Images:
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
    said: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in ("method", "size", "bins"):
            raise unknown("option of series", name, ("method", "size", "bins"))
        if name == "method":
            methods = tuple(value.split("+"))
            for method in methods:
                if method not in METHODS:
                    raise unknown("method of series", method, METHODS)
            said["methods"] = methods
        elif not value.isdecimal() or int(value) < 2:
            raise RecipeError(f"series: {name} {value!r} is no number above 1", f"{name}=64")
        else:
            said[name] = int(value)
    if not path:
        raise RecipeError("series: no file named", "For instance series:GunPoint_TRAIN.tsv.")
    return path, Encoding(**said)


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
