"""Consistency: whether this machine still gives the vectors that are stored, and fp32 agrees."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused, FeatcacheError, WeightsError, counted
from featcache.extraction.backbone import Backbone
from featcache.extraction.canary import CANARY
from featcache.extraction.engine import Engine, open_engine
from featcache.extraction.loader import cosine, load_sample
from featcache.extraction.network import Network, no_memory
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.quantising import as_stored
from featcache.extraction.registry import open_backbone
from featcache.images.manifest import Images
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, positions, to_digests
from featcache.store.key import Entry
from featcache.store.spec import options_of

log = logging.getLogger("featcache")

# Least cosine between a stored vector and the same image embedded again. Another library
# version, device or engine rounds otherwise; anything below is another function.
TOLERANCE = {"fp32": 0.9999, "bf16": 0.995, "fp16": 0.995, "int8": 0.995}


def refuse_inconsistency(
    network: Network,
    preprocess: Preprocess,
    images: Images,
    rows: NDArray[np.intp],
    stored: NDArray[np.float32],
    *,
    precision: str,
    where: str,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
) -> None:
    """Embed images again and compare with what is stored.

    Parameters
    ----------
    network : Network
    preprocess : Preprocess
    images : Images
    rows : int array of shape (n,)
        Rows of the manifest.
    stored : float32 array of shape (n, d)
        Their stored vectors.
    precision : str
        Which `TOLERANCE` holds.
    where : str
        The file, for the error.
    then, now : mapping
        Versions and device when they were stored, and now.

    Raises
    ------
    CacheRefused
        If a cosine is below the tolerance; it says what has changed since.
    """
    found = cosines(network, preprocess, images, rows, stored)
    worst = float(found.min(initial=1.0))
    if worst >= TOLERANCE[precision]:
        return
    changed = [f"{name} {then[name]} → {now[name]}" for name in now
               if name in then and then[name] != now[name]]  # fmt: skip
    raise CacheRefused(
        f"{where} holds vectors that this machine does not give any more: cosine {worst:.4f}, "
        f"at least {TOLERANCE[precision]} expected; changed since: "
        f"{', '.join(changed) or 'nothing that is recorded'}",
        "Use the versions and device it was made with, or move it away to extract everything anew.",
    )


def cosines(
    network: Network,
    preprocess: Preprocess,
    images: Images,
    rows: NDArray[np.intp],
    stored: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Cosine between each stored vector and the same image embedded now, shape (n,).

    Images that have changed, or can't be read or decoded any more, are left out.
    """
    pixels, kept = load_sample(images, rows, preprocess)
    if not len(kept):
        return np.ones(0)
    return cosine(stored[kept], network.run(pixels))


def compare_with_fp32(
    backbone: Backbone,
    engine: Engine,
    images: Images,
    rows: NDArray[np.intp],
    stored: NDArray[np.float32],
) -> float | None:
    """Embed images in fp32 and compare with what is stored; a low cosine is said aloud.

    Parameters
    ----------
    backbone : Backbone
    engine : Engine
        What has made the vectors.
    images : Images
    rows : int array of shape (n,)
        Rows of the manifest.
    stored : float32 array of shape (n, d)
        Their stored vectors.

    Returns
    -------
    float or None
        The least cosine; None if there is no memory for the network, or no image can be read.
    """
    exact = replace(engine, precision="fp32", kind="eager", batch_size=len(rows))
    try:
        found = cosines(exact.load(backbone), backbone.preprocess, images, rows, stored)
    except (FeatcacheError, RuntimeError, MemoryError) as error:
        if not no_memory(error):
            raise
        log.info("%s: no memory for a comparison with fp32", backbone.name)
        return None
    if not len(found):
        return None
    least = float(found.min())
    if not least >= CANARY:
        log.warning(
            "%s in %s differs from fp32 on these images: cosine %.4f on a sample of %d; for exact "
            "vectors extract with --precision fp32",
            backbone.name, engine.precision, least, len(found),
        )  # fmt: skip
    return least


@dataclass(frozen=True)
class Checked:
    """What embedding some images again has shown.

    Attributes
    ----------
    path : Path
    rows : int
        Images embedded again.
    cosine : float
        The least cosine with the stored vector.
    agrees : bool
        Whether it is within the tolerance of the file's precision.
    """

    path: Path
    rows: int
    cosine: float
    agrees: bool

    def __str__(self) -> str:
        word = "ok       " if self.agrees else "DIFFERS  "
        images = counted(self.rows, "image")
        return f"{word}{self.path}: {images} embedded again, least cosine {self.cosine:.6f}"


def deep_verify(
    data: str | Path | Images,
    rows: int,
    *,
    cache: str | Path = "cache",
    weights_dir: str | Path | None = None,
    seed: int = 0,
) -> Iterator[Checked]:
    """Embed `rows` random images of each file of a data set again.

    Parameters
    ----------
    data : str, Path or Images
        Where the images are, as for `open_images`.
    rows : int
    cache : str or Path, default "cache"
    weights_dir : str or Path, optional
        Where the weights are that the files were made with.
    seed : int, default 0
        Which images are drawn.

    Raises
    ------
    WeightsError
        If the weights of a file can't be found again.
    """
    images = open_images(data, cache=cache, download=False)
    for entry in Cache(cache).entries(images.name):
        if entry.key.imported:
            log.info("%s: another tool has made it; it can't be embedded again", entry.path)
            continue
        yield _check(entry, _reopen(entry, weights_dir), images, rows, seed)


def _reopen(entry: Entry, weights_dir: str | Path | None) -> Backbone:
    """The backbone that a file was made with."""
    key, made = entry.key, options_of(entry.key)
    spec = {"random": key.weights_sha256, "local": "auto"}.get(key.weights, key.weights)
    backbone = open_backbone(
        key.backbone,
        weights=spec,
        weights_dir=weights_dir,
        image_size=key.preprocess.get("crop"),
        absent="refuse",
        **{name: made[name] for name in ("layer", "pool", "layers", "colour", "filter", "scale")},
    )
    backbone = as_stored(backbone, entry.path, key)
    found = backbone.key(key.precision, key.dtype)
    if found != key:
        raise WeightsError(
            f"{entry.path} was made with something else than what is found now: "
            f"{'; '.join(key.differences(found))}",
            "Name the folder of its weights with --weights-dir.",
        )
    return backbone


def _check(entry: Entry, backbone: Backbone, images: Images, rows: int, seed: int) -> Checked:
    distinct = images.distinct()
    with FeatureFile(entry.path) as file:
        where = positions(to_digests(images.sha256[distinct]), file.digests)
        there = np.flatnonzero(where >= 0)
        rng = np.random.default_rng(seed)
        drawn = rng.choice(there, size=min(rows, len(there)), replace=False)
        stored = np.empty((len(drawn), file.dim), np.float32)
        file.read(where[drawn], stored)
    precision = entry.key.precision
    engine = open_engine(precision=precision)
    network = engine.load(backbone)
    pieces = max(1, -(-len(drawn) // engine.batch_size))
    found = [
        cosines(network, backbone.preprocess, images, distinct[drawn[part]], stored[part])
        for part in np.array_split(np.arange(len(drawn)), pieces)
    ]
    cosine = np.concatenate(found)
    least = float(cosine.min(initial=1.0))
    return Checked(entry.path, len(cosine), least, least >= TOLERANCE[precision])
