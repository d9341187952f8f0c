"""Samples: a few test images with what was predicted, the most confident mistakes first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.errors import DataError
from featcache.images.decode import BadImage, decode
from featcache.images.manifest import Content, Images
from featcache.images.sources import Reader
from featcache.reporting.html import data_uri
from featcache.reporting.places import without_place
from featcache.reporting.predictions import read_outcomes
from featcache.reporting.run_reader import Contents
from featcache.reporting.schema import Run

WRONG, RIGHT = 24, 12  # how many are shown
_SIDE = 112  # pixels; shown at most at this size


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


def wrong_samples(contents: Contents, reader: Reader | None, most: int = WRONG) -> list[Sample]:
    """Mistakes, those made with the highest probability first."""
    rows = np.flatnonzero(~contents.right)
    confidence = contents.confidence
    if confidence is not None:
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
    return _make(contents, _once(contents, rows)[:most], reader)


def right_samples(contents: Contents, reader: Reader | None, most: int = RIGHT) -> list[Sample]:
    """Some that were predicted right, drawn with seed 0: class after class, then again."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(contents.right))
    rows = np.array(_once(contents, rows), np.intp)
    turn: dict[str, int] = {}
    order = []
    for row, label in zip(rows.tolist(), contents.true[rows].tolist(), strict=True):
        turn[label] = turn.get(label, -1) + 1
        order.append((turn[label], label, row))
    return _make(contents, [row for *_, row in sorted(order)[:most]], reader)


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


def _make(contents: Contents, rows: Sequence[int], reader: Reader | None) -> list[Sample]:
    confidence = contents.confidence
    made: list[Sample] = []
    for row in rows:
        uri, small = ("", False) if reader is None else _thumbnail(reader, str(contents.ids[row]))
        made.append(
            Sample(
                id=without_place(str(contents.ids[row])),
                true=str(contents.true[row]),
                pred=str(contents.pred[row]),
                confidence=None if confidence is None else float(confidence[row]),
                uri=uri,
                small=small,
            )
        )
    return made


def _thumbnail(reader: Reader, id_: str) -> tuple[str, bool]:
    """A small copy as a `data:` address, "" where the image is gone or broken."""
    try:
        content: Content = reader(id_)
        image = decode(content)
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
