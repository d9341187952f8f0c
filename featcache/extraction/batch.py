"""Batch: images read, decoded and cut, or laid side by side for a device to cut."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from time import perf_counter, sleep
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featcache.extraction import resizing
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.images.decode import BYTES, BadImage, decode, reduction
from featcache.images.dhash import Hashes, dhash, no_hashes
from featcache.images.manifest import Content, RowReader, Strings, has_changed
from featcache.store.memory_budget import free_memory

Rows = NDArray[np.intp]
T = TypeVar("T")

_PADDING = 1.3  # of the pixels of images of several sizes that lie in one array
NO_MEMORY = "there is too little memory for it, even alone: free some, and run again"
_SHARE = 0.25  # of the free memory that may be decoded into at once
_LARGE = 1 << 22  # pixels, from which on memory may be what an image lacks
_PATIENCE = 60.0  # seconds that an image waits for others, which a killed worker never ends


@dataclass(frozen=True)
class Problem:
    """Why an image could not be embedded.

    Attributes
    ----------
    kind : {"decode", "read"}
        The same bytes will fail to decode again; a file that can't be read now may be later, and
        so may one that there was no memory for.
    text : str
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Part:
    """Images of a batch that lie in one array.

    Attributes
    ----------
    places : int64 tensor of shape (k,)
        Which of the batch's images they are.
    pixels : uint8 tensor
        (k, h, w, 3) as they were decoded, smaller ones at the top left; (k, 3, crop, crop) if they
        are cut already.
    sizes : int32 tensor of shape (k, 2), or (1, 2) for one size of all, or None
        Height and width; None if they are cut already.
    """

    places: Tensor
    pixels: Tensor
    sizes: Tensor | None

    def moved(self, move: Callable[[Tensor], Tensor], shift: int = 0) -> Part:
        """The same with each tensor moved, for images that come `shift` later in a batch."""
        places = move(self.places + shift if shift else self.places)
        return Part(
            places, move(self.pixels), None if self.sizes is None else move(self.sizes)
        )  # fmt: skip


class Decoded:
    """Images of a batch as they were decoded, for a device to cut.

    Parameters
    ----------
    count : int
        Images.
    parts : sequence of Part
    """

    def __init__(self, count: int, parts: Sequence[Part]) -> None:
        self.parts = list(parts)  # on the device, once it has cut them
        self._count = count
        self._cut: dict[Preprocess, Tensor] = {}
        self._kept: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return self._count if self._kept is None else len(self._kept)

    def __getitem__(self, mask: NDArray[np.bool_]) -> Decoded:
        """Those images where `mask`, of shape (n,), is true."""
        same = Decoded(self._count, ())
        same.parts, same._cut = self.parts, self._cut
        same._kept = np.flatnonzero(mask)
        return same

    def cut(
        self, preprocess: Preprocess, upload: Callable[[Tensor], Tensor], device: str
    ) -> Tensor:
        """The images as a network takes them, uint8 (n, 3, crop, crop) on the device.

        Networks of the same preprocessing share them.

        Parameters
        ----------
        preprocess : Preprocess
        upload : callable
            Copies a tensor to the device.
        device : str
        """
        if preprocess not in self._cut:
            self._cut[preprocess] = self._all(preprocess, upload, device)
        done = self._cut[preprocess]
        return done if self._kept is None else done[torch.from_numpy(self._kept).to(device)]

    def _all(
        self, preprocess: Preprocess, upload: Callable[[Tensor], Tensor], device: str
    ) -> Tensor:
        side = preprocess.crop
        done = torch.empty(
            (self._count, 3, side, side), dtype=torch.uint8, device=device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        self.parts[:] = [part.moved(upload) for part in self.parts]
        for part in self.parts:
            pixels = part.pixels
            if part.sizes is not None:
                pixels = resizing.cut(pixels, part.sizes, preprocess)
            done[part.places] = pixels
        return done


@dataclass
class Batch:
    """Some images, ready for the networks.

    Attributes
    ----------
    rows : int array of shape (n,)
        Their rows in the manifest.
    pixels : dict of Preprocess to uint8 array of shape (n, 3, crop, crop), or Decoded
    dhash : uint8 array of shape (n, 32)
    problems : dict of row to Problem
        Images that dropped out.
    read, decode : float
        Seconds that workers spent, summed.
    """

    rows: Rows
    pixels: dict[Preprocess, Pixels | Decoded]
    dhash: Hashes = field(default_factory=no_hashes)
    problems: dict[int, Problem] = field(default_factory=dict)
    read: float = 0.0
    decode: float = 0.0

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies beside its computing."""
        done: dict[int, Decoded] = {}
        for pixels in self.pixels.values():
            if isinstance(pixels, Decoded) and id(pixels) not in done:
                parts = [part.moved(Tensor.pin_memory) for part in pixels.parts]
                done[id(pixels)] = Decoded(len(pixels), parts)
        return replace(self, pixels={p: done[id(pixels)] for p, pixels in self.pixels.items()})


@dataclass(frozen=True)
class Cuts:
    """The preprocessings that images are loaded for, without repeats.

    Attributes
    ----------
    all : tuple of Preprocess
    device : frozenset of Preprocess
        Those that the device of the network does.
    """

    all: tuple[Preprocess, ...]
    device: frozenset[Preprocess] = frozenset()


@dataclass(frozen=True)
class Loaded:
    """One image, decoded.

    Attributes
    ----------
    row : int
    pixels : list of PIL.Image.Image or uint8 array of shape (3, crop, crop)
        For each of the cuts; what is an image still is cut later, many at a time.
    problem : Problem or None
    read, decode : float
        Seconds.
    dhash : uint8 array of shape (32,)
    """

    row: int
    pixels: list[Pixels | Image.Image]
    problem: Problem | None
    read: float
    decode: float
    dhash: Hashes = field(default_factory=no_hashes)


class DecodeBudget:
    """How many pixels may be decoded at once, by all workers together.

    Parameters
    ----------
    processes : multiprocessing context, optional
        If the workers are its processes; threads otherwise.
    """

    def __init__(self, processes: BaseContext | None = None) -> None:
        self.most = max(_LARGE, int(_SHARE * free_memory()) // BYTES)
        self.lock = threading.Lock() if processes is None else processes.Lock()
        self.taken = ctypes.c_int64(0) if processes is None else processes.RawValue("q", 0)


class Turn:
    """One image's part of the budget; given back when the block ends.

    Attributes
    ----------
    pixels : int
        That it has asked for.
    """

    def __init__(self, budget: DecodeBudget) -> None:
        self.pixels = 0
        self._budget = budget
        self._taken = 0

    def reserve(self, pixels: int) -> None:
        """Wait until so many pixels may be decoded; or, above the budget, until nobody decodes.

        An image that is decoded twice waits once: it would wait for itself.
        """
        budget, wanted = self._budget, min(pixels, self._budget.most)
        self.pixels += pixels
        end = perf_counter() + _PATIENCE
        while True:
            with budget.lock:
                fits = budget.taken.value + wanted <= budget.most
                if fits or self._taken or perf_counter() > end:
                    budget.taken.value += wanted
                    break
            sleep(0.01)
        self._taken += wanted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._budget.lock:
            self._budget.taken.value -= self._taken


def in_turn(decode: Callable[[Callable[[int], None]], T], budget: DecodeBudget) -> T:
    """What `decode`, given its `reserve`, makes of an image; again alone if memory may be short.

    Raises
    ------
    BadImage
    MemoryError
        If it doesn't fit even alone.
    """
    with Turn(budget) as turn:
        try:
            return decode(turn.reserve)
        except MemoryError:
            pass
        except BadImage:
            if 0 < turn.pixels < _LARGE:
                raise
    with Turn(budget) as turn:
        turn.reserve(budget.most)
        return decode(turn.reserve)


def load(
    read: RowReader, at: int, sha256: Strings, row: int, cuts: Cuts, budget: DecodeBudget
) -> Loaded:
    """Read and decode one image.

    Parameters
    ----------
    read, at
        `read(at)` is its content.
    sha256 : str array
        Its digest is `sha256[at]`, known once it is read.
    row : int
        Its row in the manifest.
    cuts : Cuts
    budget : DecodeBudget
    """
    start = perf_counter()
    try:
        content = read(at)
    except OSError as error:
        problem = Problem("read", f"can't be read: {error.strerror or error}")
        return Loaded(row, [], problem, perf_counter() - start, 0.0)
    except MemoryError:
        return Loaded(row, [], Problem("read", NO_MEMORY), perf_counter() - start, 0.0)
    if has_changed(content, sha256[at]):
        # Stored under the old digest, its vector would be silently wrong.
        problem = Problem("read", "has changed since it was listed; run again with --rehash")
        return Loaded(row, [], problem, perf_counter() - start, 0.0)
    middle = perf_counter()

    def prepare(reserve: Callable[[int], None]) -> tuple[list[Pixels | Image.Image], Hashes]:
        images = _decoded(content, cuts.all, reserve)
        pixels = [
            image if p in cuts.device and resizing.takes(*image.size) else _cut(image, p, cuts)
            for image, p in zip(images, cuts.all, strict=True)
        ]
        return pixels, dhash(images[0])

    try:
        pixels, hash_ = in_turn(prepare, budget)
    except BadImage as error:
        problem = Problem("decode", error.problem)
        return Loaded(row, [], problem, middle - start, perf_counter() - middle)
    except MemoryError:
        return Loaded(row, [], Problem("read", NO_MEMORY), middle - start, perf_counter() - middle)
    return Loaded(row, pixels, None, middle - start, perf_counter() - middle, hash_)


def _decoded(
    content: Content, preprocesses: Sequence[Preprocess], reserve: Callable[[int], None]
) -> list[Image.Image]:
    """The image for each preprocessing, decoded once for all that want the same."""
    if len({(p.alpha, p.at_least) for p in preprocesses}) == 1:
        first = preprocesses[0]
        return [decode(content, first.alpha, first.at_least, reserve)] * len(preprocesses)
    images: dict[tuple[str, int], Image.Image] = {}
    wanted = [(p.alpha, reduction(content, p.at_least)) for p in preprocesses]
    for p, same in zip(preprocesses, wanted, strict=True):
        if same not in images:
            images[same] = decode(content, p.alpha, p.at_least, reserve)
    return [images[same] for same in wanted]


def _cut(image: Image.Image, preprocess: Preprocess, cuts: Cuts) -> Pixels | Image.Image:
    later = preprocess.doubles(image) and preprocess not in cuts.device
    return preprocess.prepare(image) if later else preprocess.cut(image)


def collate(loaded: Sequence[Loaded], cuts: Cuts, *, shared: bool = False) -> Batch:
    """The images as a batch; `shared`: in memory that another process sees too."""
    good = [one for one in loaded if one.problem is None]
    pixels: dict[Preprocess, Pixels | Decoded] = {}
    lying: dict[tuple[int, ...], Decoded] = {}  # by what they hold: one for all that share images
    for i, preprocess in enumerate(cuts.all):
        images = [one.pixels[i] for one in good]
        if preprocess in cuts.device:
            same = tuple(map(id, images))
            if same not in lying:
                lying[same] = lay_out(images, shared)
            pixels[preprocess] = lying[same]
        else:
            pixels[preprocess] = _cut_all(images, preprocess, shared)
    return Batch(
        rows=np.array([one.row for one in good], np.intp),
        pixels=pixels,
        dhash=np.stack([one.dhash for one in good]) if good else no_hashes(),
        problems={one.row: one.problem for one in loaded if one.problem is not None},
        read=sum(one.read for one in loaded),
        decode=sum(one.decode for one in loaded),
    )


def _cut_all(
    images: Sequence[Pixels | Image.Image], preprocess: Preprocess, shared: bool
) -> Pixels | Decoded:
    """Images cut one by one, and now the small ones, many at a time."""
    side = preprocess.crop
    # Channels last in memory, as images are decoded and as networks want them.
    memory = _room(shared, len(images), side, side, 3).permute(0, 3, 1, 2)
    stack = memory.numpy()  # (n, 3, crop, crop)
    small: dict[tuple[int, ...], list[tuple[int, Pixels]]] = {}
    for place, image in enumerate(images):
        if isinstance(image, Image.Image):
            small.setdefault(image.size, []).append((place, np.asarray(image)))
        else:
            stack[place] = image
    for alike in small.values():
        places, arrays = zip(*alike, strict=True)
        stack[list(places)] = preprocess.cut_together(np.stack(arrays))
    if not shared:
        return stack
    return Decoded(len(images), [Part(torch.arange(len(images)), memory, None)])


def lay_out(images: Sequence[Pixels | Image.Image], shared: bool = False) -> Decoded:
    """Images side by side in as few arrays as their sizes allow without much padding.

    Parameters
    ----------
    images : sequence of PIL.Image.Image, or uint8 array of shape (3, crop, crop)
        RGB; arrays are cut already.
    shared : bool, default False
        In memory that another process sees too.
    """
    parts = []
    ready = [(i, image) for i, image in enumerate(images) if not isinstance(image, Image.Image)]
    if ready:
        memory = _room(shared, len(ready), *ready[0][1].shape)  # (k, 3, crop, crop)
        for place, (_, pixels) in enumerate(ready):
            memory[place] = torch.from_numpy(np.ascontiguousarray(pixels))
        parts.append(Part(torch.tensor([i for i, _ in ready]), memory, None))
    whole = [(i, image) for i, image in enumerate(images) if isinstance(image, Image.Image)]
    for group in _alike(sorted(whole, key=lambda one: (one[1].height, one[1].width))):
        h, w = (max(getattr(image, side) for _, image in group) for side in ("height", "width"))
        memory = _room(shared, len(group), h, w, 3)
        array = memory.numpy()
        for place, (_, image) in enumerate(group):
            array[place, : image.height, : image.width] = np.asarray(image)
        sizes = torch.tensor([(image.height, image.width) for _, image in group], dtype=torch.int32)
        if (sizes == sizes[:1]).all():
            sizes = sizes[:1]
        parts.append(Part(torch.tensor([i for i, _ in group]), memory, sizes))
    return Decoded(len(images), parts)


def _alike(images: Sequence[tuple[int, Image.Image]]) -> Iterator[list[tuple[int, Image.Image]]]:
    """Images sorted by size, cut into runs that fill an array of their largest sides well."""
    run: list[tuple[int, Image.Image]] = []
    area, h, w = 0, 0, 0
    for one in images:
        width, height = one[1].size
        wider, higher = max(w, width), max(h, height)
        if run and wider * higher * (len(run) + 1) > _PADDING * (area + width * height):
            yield run
            run, area, wider, higher = [], 0, width, height
        run.append(one)
        area, w, h = area + width * height, wider, higher
    if run:
        yield run


def _room(shared: bool, *shape: int) -> Tensor:
    memory = torch.empty(shape, dtype=torch.uint8)
    return torch.Tensor.share_memory_(memory) if shared else memory  # type: ignore[no-untyped-call]


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches from worker processes as one."""
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0, *(len(batch.rows) for batch in batches)]).tolist()
    made: dict[tuple[int, ...], Decoded] = {}
    pixels: dict[Preprocess, Pixels | Decoded] = {}
    for preprocess in batches[0].pixels:
        several = [batch.pixels[preprocess] for batch in batches]
        same = tuple(map(id, several))
        if same not in made:
            made[same] = Decoded(starts[-1], [
                part.moved(lambda tensor: tensor, start)
                for one, start in zip(several, starts, strict=False)
                if isinstance(one, Decoded)
                for part in one.parts
            ])  # fmt: skip
        pixels[preprocess] = made[same]
    return Batch(
        rows=np.concatenate([batch.rows for batch in batches]),
        pixels=pixels,
        dhash=np.concatenate([batch.dhash for batch in batches]),
        problems={row: problem for batch in batches for row, problem in batch.problems.items()},
        read=sum(batch.read for batch in batches),
        decode=sum(batch.decode for batch in batches),
    )
