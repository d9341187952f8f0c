"""Batch: images read, decoded and cut, or laid side by side for a device to cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featcache.extraction import resizing
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.hashing import sha256_bytes
from featcache.images.decode import BadImage, decode, reduction
from featcache.images.manifest import Content, RowReader, Strings

Rows = NDArray[np.intp]

_PADDING = 1.3  # of the pixels of images of several sizes that lie in one array


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
    sizes : int32 tensor of shape (k, 2), or None
        Height and width of each; None if they are cut already.
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
        self.parts = list(parts)
        self._count = count
        self._cut: dict[Preprocess, Tensor] = {}
        self._kept: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return self._count if self._kept is None else len(self._kept)

    def __getitem__(self, mask: NDArray[np.bool_]) -> Decoded:
        """Those images where `mask`, of shape (n,), is true."""
        same = Decoded(self._count, self.parts)
        same._cut, same._kept = self._cut, np.flatnonzero(mask)
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
        for part in self.parts:
            there = part.moved(upload)
            pixels = there.pixels
            if there.sizes is not None:
                pixels = resizing.cut(pixels, there.sizes, preprocess)
            done[there.places] = pixels
        return done


@dataclass
class Batch:
    """Some images, ready for the networks.

    Attributes
    ----------
    rows : int array of shape (n,)
        Their rows in the manifest.
    pixels : dict of Preprocess to uint8 array of shape (n, 3, crop, crop), or Decoded
    problems : dict of row to Problem
        Images that dropped out.
    read, decode : float
        Seconds that workers spent, summed.
    """

    rows: Rows
    pixels: dict[Preprocess, Pixels | Decoded]
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
    """

    row: int
    pixels: list[Pixels | Image.Image]
    problem: Problem | None
    read: float
    decode: float


def load(read: RowReader, at: int, sha256: Strings, row: int, cuts: Cuts) -> Loaded:
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
    """
    start = perf_counter()
    try:
        content = read(at)
    except OSError as error:
        problem = Problem("read", f"can't be read: {error.strerror or error}")
        return Loaded(row, [], problem, perf_counter() - start, 0.0)
    if isinstance(content, bytes) and sha256_bytes(content) != sha256[at]:
        # Stored under the old digest, its vector would be silently wrong.
        problem = Problem("read", "has changed since it was listed; run again with --rehash")
        return Loaded(row, [], problem, perf_counter() - start, 0.0)
    middle = perf_counter()
    try:
        decoded = _decoded(content, cuts.all)
        pixels = [
            image if p in cuts.device and resizing.takes(*image.size) else _cut(image, p, cuts)
            for image, p in zip(decoded, cuts.all, strict=True)
        ]
    except BadImage as error:
        problem = Problem("decode", error.problem)
        return Loaded(row, [], problem, middle - start, perf_counter() - middle)
    return Loaded(row, pixels, None, middle - start, perf_counter() - middle)


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
        problems={row: problem for batch in batches for row, problem in batch.problems.items()},
        read=sum(batch.read for batch in batches),
        decode=sum(batch.decode for batch in batches),
    )
