"""Plan: all that a worker needs to know to embed images as the client would; plain data.

It travels as JSON. Nothing in it is an object that somebody could have built otherwise: names,
paths, numbers, the keys that must come out, and a few vectors to compare with.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import featcache
from featcache.errors import RecipeError
from featcache.extraction.backbone import Backbone, BackboneOptions
from featcache.extraction.extract import ExtractionContext, Request
from featcache.extraction.loader import load_sample, spread
from featcache.extraction.network import INT8
from featcache.extraction.task import ExtractionTask, FileInProgress
from featcache.hashing import canonical_json
from featcache.images.manifest import Images
from featcache.images.sources import SOURCES

_SAMPLE = 4  # images that every worker embeds before it gets work


@dataclass(frozen=True)
class Source:
    """Where workers find the images.

    Attributes
    ----------
    root : str
        For files, the folder or URL that ids are relative to; else "".
    spec : str
        For images that come by name, as "digits", what to open.
    data_root : str
        Where torchvision's data sets are; "" by default.
    """

    root: str
    spec: str
    data_root: str


@dataclass(frozen=True)
class Part:
    """One backbone's share of the plan.

    Attributes
    ----------
    number : int
        Which of the backbones and views that were asked for.
    precision, engine : str
        As the client chose them.
    key : str
        Canonical JSON of the key that must come out.
    partial : str
        Name of the file in progress, in the data set's folder.
    bytes : int
        Its least size: whether a worker sees the same folder.
    vectors : str
        The sample's vectors on the client, float32 (n, d) in base64.
    """

    number: int
    precision: str
    engine: str
    key: str
    partial: str
    bytes: int
    vectors: str

    def expected(self, rows: int) -> NDArray[np.float32]:
        """The sample's vectors, shape (rows, d)."""
        flat = np.frombuffer(base64.b64decode(self.vectors), np.float32)
        return flat.reshape(rows, -1)


@dataclass(frozen=True)
class Plan:
    """What all workers are told.

    Attributes
    ----------
    versions : dict of str to str
        Of the client; workers must have the same.
    run : str
        Another one each time, so that a worker that was refused and then mended is looked at anew.
    data : str
        The data set's name.
    cache : str
        The cache folder.
    source : Source
    parts_at : str
        The URL that parts go to; "" for the cache folder.
    request : Request
        Its paths mean the same everywhere.
    count : int
        Of the data set's distinct images.
    threads : int
        Of a forward pass; 0 for all that the worker has.
    ids, sha256 : sequence of str
        The sample.
    parts : sequence of Part
    """

    versions: dict[str, str]
    run: str
    data: str
    cache: str
    source: Source
    parts_at: str
    request: Request
    count: int
    threads: int
    ids: Sequence[str]
    sha256: Sequence[str]
    parts: Sequence[Part]

    def json(self) -> str:
        """Equal plans give equal text."""
        return canonical_json(asdict(self))


def read_plan(text: str) -> Plan:
    """The inverse of `Plan.json`."""
    plain = json.loads(text)
    request = plain["request"]
    plain["request"] = Request(**{**request, "options": BackboneOptions(**request["options"])})
    plain["source"] = Source(**plain["source"])
    plain["parts"] = [Part(**part) for part in plain["parts"]]
    return Plan(**plain)


def make_plan(
    context: ExtractionContext, data_root: str | Path | None, threads: int, parts_at: str = ""
) -> Plan:
    """The plan for what is missing; it has one part for each of the context's `files`.

    The networks that embed the sample here are let go of afterwards.
    """
    images = context.unique.images
    if context.request.precision == INT8:
        raise RecipeError(
            "workers don't embed in int8: the network is quantised where the command runs",
            "Leave --dask out, or choose another --precision.",
        )
    unfinished = [
        (number, task, task.file)
        for number, task in enumerate(context.tasks)
        if task.file is not None and task.file.pending
    ]
    source = _source(images, data_root)
    rows = spread(context.unique.rows, _SAMPLE)
    readable = load_sample(images, rows, unfinished[0][1].backbone.preprocess)[1]
    rows = rows[readable]
    return Plan(
        versions=versions(),
        run=uuid.uuid4().hex,
        data=images.name,
        cache=str(context.cache.folder.absolute()),
        source=source,
        parts_at=parts_at,
        request=_portable(context.request),
        count=context.unique.count,
        threads=threads,
        ids=images.ids[rows].tolist(),
        sha256=images.sha256[rows].tolist(),
        parts=[_part(*one, images, rows) for one in unfinished],
    )


def versions() -> dict[str, str]:
    """What must be the same everywhere; builds for one device or another are not told apart."""
    import torch
    import torchvision

    plain = {"featcache": featcache, "torch": torch, "torchvision": torchvision}
    return {name: str(module.__version__).split("+")[0] for name, module in plain.items()}


def _part(
    number: int,
    task: ExtractionTask,
    file: FileInProgress,
    images: Images,
    rows: NDArray[np.intp],
) -> Part:
    pixels, _ = load_sample(images, rows, task.backbone.preprocess)
    vectors = task.network.run(pixels) if len(rows) else np.empty((0, 1), np.float32)
    engine = task.network.kind
    task.release()
    path = file.features.path
    return Part(
        number=number,
        precision=task.key.precision,
        engine=engine,
        key=task.key.json(),
        partial=path.name,
        bytes=path.stat().st_size,
        vectors=base64.b64encode(vectors.tobytes()).decode(),
    )


def _source(images: Images, data_root: str | Path | None) -> Source:
    if images.root:
        anchor = Path(images.root) == Path(Path(images.root).anchor)
        if anchor and not all(Path(id_).is_absolute() for id_ in images.ids.tolist()):
            raise RecipeError(
                f"{images.source} has relative paths and absolute ones",
                "Workers find images below one folder: make all of them relative, or all absolute.",
            )
        return Source(images.root, "", "")
    if images.source.partition(":")[0] not in SOURCES:
        raise RecipeError(
            f"the images of {images.name} can't be sent to workers: they are in memory",
            "Write them to files that all workers see, and pass that folder or URL with --data.",
        )
    root = str(Path(data_root or "data").absolute())
    return Source("", images.source, root)


def _portable(request: Request) -> Request:
    """The request as JSON can hold it, with paths that mean the same everywhere."""
    named, options = request.backbone, request.options
    backbones = [named] if isinstance(named, str | Backbone) else list(named)
    for one in backbones:
        if isinstance(one, Backbone):
            raise RecipeError(
                f"the backbone {one.name} can't be sent to workers: it is an object",
                "Name one that featcache knows, or embed without a cluster.",
            )
    if options.weights_dir is not None:
        folder = Path(options.weights_dir).expanduser().absolute()
        options = replace(options, weights_dir=str(folder))
    weights = Path(options.weights).expanduser()
    if options.weights != "auto" and weights.exists():
        options = replace(options, weights=str(weights.absolute()))
    return replace(request, backbone=backbones, options=options)
