"""Worker: what runs in the processes of a cluster. Each checks itself before it does anything.

One range at a time in a process, however many threads Dask gives it: the network's own threads
use the processor's cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from featcache.errors import ClusterError, DataError, FeatcacheError, first_line
from featcache.extraction.batch import Problem
from featcache.extraction.consistency import TOLERANCE
from featcache.extraction.engine import Engine, open_engine
from featcache.extraction.loader import Loader, choose_loading, cosine, load_sample
from featcache.extraction.network import Network
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.report import Report
from featcache.extraction.task import FileInProgress, fill
from featcache.images.dhash import to_cells
from featcache.images.location import open_location
from featcache.images.manifest import Images, make_images
from featcache.images.sources import Reader, open_images, reader_of
from featcache.scaling.plan import Part, Plan, Source, read_plan, versions
from featcache.scaling.transport import Transport, open_transport
from featcache.store.cache import Cache
from featcache.store.feature_file import create, to_digests
from featcache.store.key import Key, read_key
from featcache.store.locking import new_part

_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class Ready:
    """A network that gives what the client expects, and what it is for."""

    key: Key
    preprocess: Preprocess
    network: Network
    engine: Engine

    def give(self) -> Network:
        """As `FileInProgress` asks for it."""
        return self.network


@dataclass(frozen=True)
class Checked:
    """What became of a worker's look at itself.

    Attributes
    ----------
    refused : str
        Why it must not help; "" where it may.
    device : str
    cosine : float
        The least one between its vectors and the client's.
    identical : bool
        Whether they are equal to the bit.
    parts : tuple of Ready
    """

    refused: str = ""
    device: str = ""
    cosine: float = 1.0
    identical: bool = True
    parts: tuple[Ready, ...] = ()


def check(plan: str) -> dict[str, Any]:
    """Whether this process may help with a plan: `Checked` as plain data, without its parts."""
    with _ONE_AT_A_TIME:
        _use_threads(read_plan(plan))
        checked = _checked(plan)
    return {
        "refused": checked.refused,
        "device": checked.device,
        "cosine": checked.cosine,
        "identical": checked.identical,
    }


def embed_range(plan: str, span: Mapping[str, Any]) -> dict[str, Any]:
    """Embed a range of rows into part files, and hand them over; see `featcache.scaling.transport`.

    Parameters
    ----------
    plan : str
        A `Plan` as JSON.
    span : mapping
        "first" and "last", which name the parts; "ids" and "sha256" of the images; "needs": for
        each part of the plan, which of them it needs.

    Returns
    -------
    dict
        "refused": why nothing was done, or ""; "parts": a file name for each part of the plan, ""
        for none; "problems": for each image that failed, its place, and the kind and text of its
        problem; "seconds": as in `Report`; "compute": of each part; "hashes": places of images, and
        the dHash of each.
    """
    with _ONE_AT_A_TIME:
        described = read_plan(plan)
        _use_threads(described)
        checked = _checked(plan)
        if checked.refused:
            return {"refused": checked.refused}
        parts = _parts(described)
        with parts.desk() as desk:
            try:
                return _embed(described, checked, span, parts, Cache(desk))
            except ClusterError as error:  # what it has embedded can't be handed over
                return {"refused": str(error).replace("\n", "; ")}


def _embed(
    plan: Plan, checked: Checked, span: Mapping[str, Any], parts: Transport, cache: Cache
) -> dict[str, Any]:
    images = _images(plan, span["ids"], span["sha256"])
    report = Report(plan.data, len(images))
    problems: dict[int, Problem] = {}
    paths: list[Path | None] = []
    files = []
    with ExitStack() as stack:
        for ready, need in zip(checked.parts, span["needs"], strict=True):
            paths.append(None)
            if not need:
                continue
            path = new_part(cache, plan.data, ready.key, span["first"], span["last"])
            digests = to_digests(images.sha256[need])
            features = stack.enter_context(create(path, ready.key, digests, ready.network.dim))
            row_of = {row: place for place, row in enumerate(need)}
            files.append(FileInProgress(features, row_of, ready.preprocess, ready.give))
            paths[-1] = path
        batch_size = checked.parts[0].engine.batch_size
        device = checked.parts[0].engine.device
        loading = choose_loading(images, device, plan.request.workers)
        fill(files, Loader(images, batch_size, loading), report, problems.update)
    for path in filter(None, paths):
        parts.hand_over(path)
    compute = iter([file.seconds for file in files])
    return {
        "refused": "",
        "parts": [path.name if path else "" for path in paths],
        "problems": [(row, one.kind, one.text) for row, one in sorted(problems.items())],
        "seconds": report.seconds,
        "compute": [next(compute) if path else 0.0 for path in paths],
        "hashes": [(rows.tolist(), to_cells(dhash)) for rows, dhash in report.hashes],
    }


@lru_cache(maxsize=1)  # the networks stay from one range to the next
def _checked(text: str) -> Checked:
    """Build the networks, and hold them against what the client found."""
    plan = read_plan(text)
    found = versions()
    other = [f"{name} {found.get(name)}, not {wanted}"
             for name, wanted in plan.versions.items() if found.get(name) != wanted]  # fmt: skip
    if other:
        return Checked(f"it has {'; '.join(other)}")
    try:
        expected = {part.partial: part.bytes for part in plan.parts}
        _parts(plan).check(expected)
        images = _images(plan, plan.ids, plan.sha256)
        parts = tuple(_open(plan, part) for part in plan.parts)
        _parts(plan).check(expected)
        return _compare(plan, parts, images)
    except FeatcacheError as error:
        return Checked(str(error).replace("\n", "; "))
    except Exception as error:  # whatever it is: as plain text it always reaches the client
        return Checked(f"{type(error).__name__}: {first_line(error)}")


def _parts(plan: Plan) -> Transport:
    return open_transport(plan.parts_at, Path(plan.cache), plan.data)


def _open(plan: Plan, part: Part) -> Ready:
    """One backbone as the client opened it, or the reason why it is another one here."""
    request = plan.request
    engine = open_engine(request.device, part.precision, part.engine, request.batch_size)
    engine = engine.for_set(plan.count)
    backbone = request.open()[part.number]
    wanted, key = read_key(part.key, "the plan"), backbone.key(part.precision)
    if key != wanted:
        raise DataError(f"its {backbone.name} is another: {'; '.join(wanted.differences(key))}")
    network = engine.load(backbone)
    if network.kind != part.engine:
        raise DataError(f"it runs {backbone.name} as {network.kind}, not as {part.engine}")
    return Ready(key, backbone.preprocess, network, engine)


def _compare(plan: Plan, parts: tuple[Ready, ...], images: Images) -> Checked:
    """Embed the sample; every row must be as near to the client's as the precision allows."""
    rows = np.arange(len(images))
    least, identical, device = 1.0, True, ""
    for part, ready in zip(plan.parts, parts, strict=True):
        device = ready.engine.describe()["device"]
        if not len(rows):
            continue
        pixels, kept = load_sample(images, rows, ready.preprocess)
        if len(kept) < len(rows):
            lost = sorted(set(rows.tolist()) - set(kept.tolist()))
            raise DataError(
                f"it sees other images, or can't read them: {images.ids[lost[0]]} below "
                f"{plan.source.root or plan.source.data_root}"
            )
        here, there = ready.network.run(pixels), part.expected(len(rows))
        if here.shape != there.shape:
            raise DataError(f"its {ready.key.backbone} gives {here.shape[1]} numbers")
        worst, wanted = float(cosine(here, there).min()), TOLERANCE[part.precision]
        if not worst >= wanted:
            raise DataError(
                f"its vectors of {ready.key.backbone} differ: cosine {worst:.4f}, at least "
                f"{wanted} is wanted (device {device})"
            )
        least, identical = min(least, worst), identical and bool((here == there).all())
    return Checked("", device, least, identical, parts)


def _images(plan: Plan, ids: Sequence[str], sha256: Sequence[str]) -> Images:
    """A manifest of these images, which it can read."""
    read: Reader
    if plan.source.root:
        read = open_location(plan.source.root).read
    else:
        read, known = _named(plan.source, plan.data, plan.run)
        for id_, digest in zip(ids, sha256, strict=True):
            if known.get(id_) != digest:
                raise DataError(
                    f"it sees other images under {plan.source.spec}: {id_} is not the client's",
                    f"Keep one copy that all see (--data-root {plan.source.data_root}).",
                )
    none = [""] * len(ids)
    return make_images(plan.data, ids, sha256, labels=none, read=lambda row: read(ids[row]))


@lru_cache(maxsize=1)
def _named(source: Source, data: str, run: str) -> tuple[Reader, dict[str, str]]:
    """Images that come by name, opened once in a process and run, and the sha256 of each id."""
    whole = open_images(source.spec, name=data, data_root=source.data_root, cache=None)
    return reader_of(whole), dict(zip(whole.ids.tolist(), whole.sha256.tolist(), strict=True))


def _use_threads(plan: Plan) -> None:
    """A forward pass takes the threads that the plan says, else all that Dask gives."""
    import torch
    from distributed import get_worker

    threads = plan.threads or max(int(get_worker().state.nthreads), torch.get_num_threads())
    torch.set_num_threads(threads)
