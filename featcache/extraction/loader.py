"""Loader: images are read, decoded and cut by threads, ahead of the network."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.errors import RecipeError
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.hashing import sha256_bytes
from featcache.images.decode import BadImage, decode, reduction
from featcache.images.manifest import Content, Images


@dataclass(frozen=True)
class Problem:
    """Why an image could not be embedded.

    Attributes
    ----------
    kind : {"decode", "read"}
        The same bytes will fail to decode again; a file that can't be read now may be later.
    text : str
    """

    kind: str
    text: str


@dataclass
class Batch:
    """Some images, ready for the networks.

    Attributes
    ----------
    rows : int array of shape (n,)
        Their rows in the manifest.
    pixels : dict of Preprocess to uint8 array of shape (n, 3, crop, crop)
    problems : dict of row to Problem
        Images that dropped out.
    read, decode : float
        Seconds that threads spent, summed.
    """

    rows: NDArray[np.intp]
    pixels: dict[Preprocess, Pixels]
    problems: dict[int, Problem] = field(default_factory=dict)
    read: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class _Loaded:
    row: int
    pixels: list[Pixels | Image.Image]  # small images are cut later, many at a time
    problem: Problem | None
    read: float
    decode: float


def count_workers(workers: int | str) -> int:
    """How many threads "auto" means: one for each core, at most 16."""
    if workers == "auto":
        return min(16, os.cpu_count() or 1)
    if not isinstance(workers, int) or workers < 1:
        raise RecipeError(f"workers {workers!r} is no positive number")
    return workers


def load_batches(
    images: Images,
    rows: NDArray[np.intp],
    preprocesses: Sequence[Preprocess],
    batch_size: int,
    workers: int,
) -> Generator[Batch, None, None]:
    """Read these rows in order, decode each once, and cut it for every preprocessing.

    Parameters
    ----------
    images : Images
    rows : int array
        Rows of the manifest.
    preprocesses : sequence of Preprocess
        Without repeats.
    batch_size : int
        Rows taken for each batch; broken images make it shorter.
    workers : int
        Threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="featcache-load")
    waiting: deque[Future[_Loaded]] = deque()
    upcoming = iter(rows.tolist())
    try:
        # Two batches ahead: enough to hide decoding, and memory stays bounded.
        for row in islice(upcoming, 2 * batch_size + workers):
            waiting.append(pool.submit(_load, images, row, preprocesses))
        while waiting:
            loaded = []
            for _ in range(min(batch_size, len(waiting))):
                loaded.append(waiting.popleft().result())
                for row in islice(upcoming, 1):
                    waiting.append(pool.submit(_load, images, row, preprocesses))
            yield _collate(loaded, preprocesses)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(images: Images, row: int, preprocesses: Sequence[Preprocess]) -> _Loaded:
    start = perf_counter()
    try:
        content = images.read(row)
    except OSError as error:
        problem = Problem("read", f"can't be read: {error.strerror or error}")
        return _Loaded(row, [], problem, perf_counter() - start, 0.0)
    if isinstance(content, bytes) and sha256_bytes(content) != images.sha256[row]:
        # Stored under the old digest, its vector would be silently wrong.
        problem = Problem("read", "has changed since it was listed; run again with --rehash")
        return _Loaded(row, [], problem, perf_counter() - start, 0.0)
    middle = perf_counter()
    try:
        decoded = _decoded(content, preprocesses)
        pixels = [_cut(*pair) for pair in zip(decoded, preprocesses, strict=True)]
    except BadImage as error:
        problem = Problem("decode", error.problem)
        return _Loaded(row, [], problem, middle - start, perf_counter() - middle)
    return _Loaded(row, pixels, None, middle - start, perf_counter() - middle)


def _decoded(content: Content, preprocesses: Sequence[Preprocess]) -> list[Image.Image]:
    """The image for each preprocessing, decoded once for all that want the same."""
    if len({(p.alpha, p.at_least) for p in preprocesses}) == 1:
        first = preprocesses[0]
        return [decode(content, first.alpha, first.at_least)] * len(preprocesses)
    images: dict[tuple[str, int], Image.Image] = {}
    wanted = [(p.alpha, reduction(content, p.at_least)) for p in preprocesses]
    for p, same in zip(preprocesses, wanted, strict=True):
        if same not in images:
            images[same] = decode(content, p.alpha, p.at_least)
    return [images[same] for same in wanted]


def _cut(image: Image.Image, preprocess: Preprocess) -> Pixels | Image.Image:
    return preprocess.prepare(image) if preprocess.doubles(image) else preprocess.cut(image)


def _collate(loaded: Sequence[_Loaded], preprocesses: Sequence[Preprocess]) -> Batch:
    good = [one for one in loaded if one.problem is None]
    pixels = {}
    for i, preprocess in enumerate(preprocesses):
        side = preprocess.crop
        # Channels last in memory, as images are decoded and as networks want them.
        stack = np.empty((len(good), side, side, 3), np.uint8).transpose(0, 3, 1, 2)
        small: dict[tuple[int, ...], list[tuple[int, Pixels]]] = {}
        for place, one in enumerate(good):
            image = one.pixels[i]
            if isinstance(image, Image.Image):
                small.setdefault(image.size, []).append((place, np.asarray(image)))
            else:
                stack[place] = image
        for alike in small.values():
            places, images = zip(*alike, strict=True)
            stack[list(places)] = preprocess.cut_together(np.stack(images))
        pixels[preprocess] = stack
    return Batch(
        rows=np.array([one.row for one in good], np.intp),
        pixels=pixels,
        problems={one.row: one.problem for one in loaded if one.problem is not None},
        read=sum(one.read for one in loaded),
        decode=sum(one.decode for one in loaded),
    )


Rows = NDArray[np.intp]


def spread(rows: Rows, count: int) -> Rows:
    """At most `count` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.intp)]


def load_sample(images: Images, rows: Rows, preprocess: Preprocess) -> tuple[Pixels, Rows]:
    """Load images one after another.

    Returns
    -------
    pixels : uint8 array of shape (k, 3, crop, crop)
    kept : int array of shape (k,)
        Which of `rows` they are; those that have changed, or can't be read or decoded, are left
        out.
    """
    pixels, kept = [], []
    for i, row in enumerate(rows.tolist()):
        try:
            content = images.read(row)
            if isinstance(content, bytes) and sha256_bytes(content) != images.sha256[row]:
                continue
            pixels.append(preprocess.cut(decode(content, preprocess.alpha, preprocess.at_least)))
        except (BadImage, OSError):
            continue
        kept.append(i)
    side = preprocess.crop
    stack = np.stack(pixels) if pixels else np.empty((0, 3, side, side), np.uint8)
    return stack, np.array(kept, np.intp)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine between the rows of two arrays of shape (n, d), shape (n,); 1 where both are equal."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)  # (n,)
    found = (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)  # (n,)
    result: NDArray[np.float64] = np.where((x == y).all(axis=1), 1.0, found)
    return result
