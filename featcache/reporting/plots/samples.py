"""Samples: test images with what was predicted, in a gallery and on the map of the features."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.errors import DataError
from featcache.images.decode import BadImage, decode
from featcache.images.manifest import Content, Images
from featcache.images.sources import Reader
from featcache.reporting.html import data_uri
from featcache.reporting.places import without_place
from featcache.reporting.plots.features import Map
from featcache.reporting.predictions import read_outcomes
from featcache.reporting.run_reader import Contents
from featcache.reporting.schema import Run

WRONG, RIGHT = 48, 18  # how many are shown
_SIDE = 112  # pixels; shown at most at this size
_MOST_BYTES = 2_500_000  # of the pictures on a map
_LONGEST = 120  # characters of an id on a map
MAP_SIZE = (640, 480)
_MARGIN = 10

Draw = Callable[[str], tuple[str, bool]]  # id -> `thumbnail`


@dataclass(frozen=True)
class Sample:
    """One test image.

    Attributes
    ----------
    id, true, pred : str
    confidence : float or None
        The probability given to `pred`.
    uri : str
        Its picture as a `data:` address; "" where it can't be had.
    small : bool
        Smaller than it is shown: enlarged without smoothing.
    """

    id: str
    true: str
    pred: str
    confidence: float | None
    uri: str = ""
    small: bool = False


@dataclass(frozen=True)
class Point:
    """An image's place on the map, in units of `MAP_SIZE`; y grows downwards.

    `sample.pred` is "" if the image was not tested.
    """

    sample: Sample
    x: float
    y: float

    @property
    def wrong(self) -> bool:
        """Whether it was predicted, and wrong."""
        return self.sample.pred not in ("", self.sample.true)


def wrong_samples(contents: Contents, draw: Draw | None, most: int = WRONG) -> list[Sample]:
    """Mistakes, those made with the highest probability first."""
    rows = np.flatnonzero(~contents.right)
    confidence = contents.confidence
    if confidence is not None:
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
    return _make(contents, _once(contents, rows)[:most], draw)


def right_samples(contents: Contents, draw: Draw | None, most: int = RIGHT) -> list[Sample]:
    """Some that were predicted right, drawn with seed 0: class after class, then again."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(contents.right))
    rows = np.array(_once(contents, rows), np.intp)
    turn: dict[str, int] = {}
    order = []
    for row, label in zip(rows.tolist(), contents.true[rows].tolist(), strict=True):
        turn[label] = turn.get(label, -1) + 1
        order.append((turn[label], label, row))
    return _make(contents, [row for *_, row in sorted(order)[:most]], draw)


def map_points(
    found: Map | None, contents: Contents, draw: Draw | None, pictures: int
) -> list[Point]:
    """The images of a map with what was predicted, mistakes last: they lie on top.

    Of an image that was tested several times the first mistake counts. Mistakes get their pictures
    first, then others drawn with seed 0, until there are so many `pictures` or 2.5 MB of them.
    """
    if found is None:
        return []
    rows: dict[str, int] = {}
    for row in np.argsort(contents.right, kind="stable").tolist():  # mistakes first
        rows.setdefault(str(contents.ids[row]), row)
    places, ids, sure = _placed(found.xy), found.ids.tolist(), contents.confidence
    drawn = np.flatnonzero(np.isfinite(places).all(axis=1))
    order = np.random.default_rng(0).permutation(drawn).tolist()
    order.sort(key=lambda i: ids[i] not in rows or bool(contents.right[rows[ids[i]]]))
    points: list[Point] = []
    left, size = pictures, 0
    for i in order:
        picture = draw(ids[i]) if draw and left > 0 and size < _MOST_BYTES else ("", False)
        left, size = left - bool(picture[0]), size + len(picture[0])
        if ids[i] in rows:
            sample = _sample(contents, rows[ids[i]], sure, picture)
        else:
            sample = Sample(without_place(ids[i]), str(found.labels[i]), "", None, *picture)
        short = sample.id if len(sample.id) <= _LONGEST else f"…{sample.id[-_LONGEST:]}"
        points.append(Point(replace(sample, id=short), *places[i].tolist()))
    return points[::-1]


def _placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates (n, 2) as large as fits `MAP_SIZE`, without distortion."""
    known = xy[np.isfinite(xy).all(axis=1)]
    if not len(known):
        return xy
    low, high = known.min(axis=0) / 2, known.max(axis=0) / 2  # halves don't overflow
    size = np.array(MAP_SIZE)
    scale = 0.5 / max(((high - low) / (size - 2 * _MARGIN)).max(), 1e-300)
    placed: NDArray[np.float64] = size / 2 + (xy - low - high) * [scale, -scale]
    return placed


def runs_on(images: Images, runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that were tested on these images.

    They are known by the data set's name; if none has that, by the ids of what was tested.

    Raises
    ------
    DataError
        If there are none.
    """
    named = [run for run in runs if run.data == images.name]
    ids = set(images.ids.tolist())
    found = named or [run for run in runs if _tested(run) <= ids]
    if not found:
        raise DataError(
            f"no run on {', '.join(sorted({run.data for run in runs})) or 'these rows'} was tested "
            f"on the images of {images.name}",
            "Pass with --data what the runs' images were extracted from, wherever it is now.",
        )
    return found


def _tested(run: Run) -> set[str]:
    """The ids of the tested images; one that no image has if they can't be read."""
    try:
        return set(read_outcomes(run.folder / "predictions.csv").ids)
    except DataError:
        return {""}


def _once(contents: Contents, rows: NDArray[np.intp]) -> list[int]:
    """Rows without those of an image that came before: repeated folds test it several times."""
    first: dict[str, int] = {}
    for row, id_ in zip(rows.tolist(), contents.ids[rows].tolist(), strict=True):
        first.setdefault(id_, row)
    return list(first.values())


def _make(contents: Contents, rows: Sequence[int], draw: Draw | None) -> list[Sample]:
    sure = contents.confidence
    pictures = [("", False) if draw is None else draw(str(contents.ids[row])) for row in rows]
    return [
        _sample(contents, row, sure, picture) for row, picture in zip(rows, pictures, strict=True)
    ]


def _sample(
    contents: Contents, row: int, sure: NDArray[np.float64] | None, picture: tuple[str, bool]
) -> Sample:
    return Sample(
        without_place(str(contents.ids[row])), str(contents.true[row]), str(contents.pred[row]),
        None if sure is None else float(sure[row]), *picture,
    )  # fmt: skip


def thumbnail(reader: Reader, id_: str) -> tuple[str, bool]:
    """A small copy as a `data:` address, and whether the image itself is smaller than shown.

    "" if the image is gone or broken.
    """
    try:
        content: Content = reader(id_)
        image = decode(content, at_least=_SIDE)
    except (OSError, KeyError, BadImage, MemoryError):
        return "", False
    small = max(image.size) < _SIDE
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:  # few bytes, and no compression to look at
        image.save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), ".png"), True
    image.save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue(), ".jpg"), False
