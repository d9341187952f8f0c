"""Data: the images of a fine-tuning, decoded once, in batches; its rows as stage 2 sees them.

Also what the cache has of them: a warm start runs the frozen epochs on cached vectors.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from featcache.errors import CacheMissing, DataError, RecipeError, counted
from featcache.extraction.backbone import Backbone
from featcache.extraction.batch import (
    NO_MEMORY,
    Batch,
    DecodeBudget,
    Decoded,
    Part,
    in_turn,
    lay_out,
)
from featcache.extraction.loader import choose_loading, load_batches
from featcache.extraction.network import PRECISIONS
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.resizing import resizes, takes
from featcache.finetuning.augment import Draws, crop_batch, crop_one, jitter
from featcache.fitting.splits import Fold, components, hold_out
from featcache.images.decode import BadImage, decode
from featcache.images.manifest import Images, has_changed
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile
from featcache.store.features import Features
from featcache.store.key import Entry
from featcache.store.spec import extract_commands

log = logging.getLogger("featcache")

T = TypeVar("T")
_AHEAD = 2  # batches that threads prepare while the network is at work
_EVAL, _EVAL_ON_CARD = 128, 256  # images in a batch without gradients
_FREE = 8  # one part in so many of a card's free memory may hold what is validated on
KEPT_BYTES = 4 << 30


class Pixels:
    """The images of a manifest, ready to train on and to test on.

    All are decoded once, which finds the broken ones; those that fit into `budget` stay in
    memory, the others are decoded again each time they are needed.

    Parameters
    ----------
    images : Images
    preprocesses : sequence of Preprocess
        Of each backbone.
    device : torch.device
    workers : int or "auto"
        Threads; for a GPU also worker processes, which decode what is in files.
    budget : int, default 4 GiB
        Bytes of decoded images to keep.

    Attributes
    ----------
    bad : dict of row to str
        Images that can't be decoded, and why.
    sizes : int64 tensor of shape (n, 2)
        Height and width of each.
    cuts_on_device : bool
        Whether the device resizes what is tested on, as in extraction on a GPU.
    """

    def __init__(
        self,
        images: Images,
        preprocesses: Sequence[Preprocess],
        device: torch.device,
        workers: int | str = "auto",
        budget: int = KEPT_BYTES,
    ) -> None:
        if len({preprocess.alpha for preprocess in preprocesses}) > 1:
            raise RecipeError("the backbones lay transparent pixels over different colours")
        self.preprocesses = list(preprocesses)
        self.side = max(preprocess.crop for preprocess in preprocesses)
        self._at_least = max(preprocess.at_least for preprocess in preprocesses)
        self.device = device
        self._moments = {p: _moments(p, device) for p in self.preprocesses}
        self.bad: dict[int, str] = {}
        self.sizes = torch.zeros(len(images), 2, dtype=torch.int64)
        self._images = images
        self._loading = replace(choose_loading(images, str(device), workers), pin=False)
        self._threads = self._loading.workers
        self._budget = DecodeBudget()
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._read_all(budget)
        self._stack = self._stacked()
        self._eval = _EVAL_ON_CARD if device.type == "cuda" else _EVAL
        self._keeps = True
        self._lying: tuple[NDArray[np.intp], list[dict[Preprocess, Tensor]]] | None = None
        self.cuts_on_device = (
            device.type != "cpu"
            and all(map(resizes, preprocesses))
            and all(takes(w, h) for h, w in self.sizes.tolist() if h)  # 0 of broken ones
        )

    def drop_bad(self) -> Images:
        """The manifest without broken images; rows are then counted in what is left."""
        images = self._images
        if not self.bad:
            return images
        keep = np.setdiff1d(np.arange(len(images)), list(self.bad))
        if not len(keep):
            raise DataError(
                f"not one of {counted(len(images), 'image')} can be decoded "
                f"({next(iter(self.bad.values()))})"
            )
        first = next(iter(self.bad))
        log.warning(
            "%s can't be decoded: left out (%s: %s)",
            counted(len(self.bad), "image"), images.ids[first], self.bad[first],
        )  # fmt: skip
        per_row = ("ids", "sha256", "labels", "groups", "split")
        nothing = np.zeros(0, np.int64)
        self._images = replace(
            images,
            **{name: getattr(images, name)[keep] for name in per_row},
            read=lambda row: images.read(int(keep[row])),
            size=nothing,
            mtime_ns=nothing,
        )
        self._kept = {new: self._kept[old] for new, old in enumerate(keep) if old in self._kept}
        self.sizes = self.sizes[torch.from_numpy(keep)]
        self.bad = {}
        self._stack = self._stacked()
        return self._images

    def train_batches(
        self, rows: NDArray[np.intp], draws: Draws, batches: Sequence[slice]
    ) -> Iterator[tuple[Tensor, ...]]:
        """What `augment` takes for each batch, on the device.

        Parameters
        ----------
        rows : int array of shape (n,)
            All rows of an epoch, in its order: they and what is drawn go to the device once.
        draws : Draws
            For each of them.
        batches : sequence of slice
            Of these rows.
        """
        there = draws.to(self.device)
        if self._stack is not None:
            places = torch.from_numpy(rows).to(self.device)  # (n,)
            for batch in batches:
                yield places[batch], there.box[batch], there.flip[batch], there.colour[batch]
            return

        def one(i: int) -> Tensor:
            image = torch.from_numpy(self._decoded(int(rows[i])).transpose(2, 0, 1).copy())
            return crop_one(image, draws.box[i], draws.flip[i], self.side)

        work = [range(len(rows))[batch] for batch in batches]
        for cropped, batch in zip(self._ahead(one, work), batches, strict=True):
            yield self._upload(cropped), there.colour[batch]

    def _upload(self, images: Sequence[Tensor]) -> Tensor:
        """Images (3, h, w) as one tensor on the device, which need not be waited for."""
        memory = torch.empty(
            (len(images), *images[0].shape), dtype=images[0].dtype,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        return torch.stack(list(images), out=memory).to(self.device, non_blocking=True)

    def augment(self, images: Tensor, *drawn: Tensor) -> Tensor:
        """A batch of `train_batches` as float32 (b, 3, side, side), 0 … 1."""
        if self._stack is None:  # (b, 3, side, side), cropped by threads
            return jitter(images.float().div_(255), *drawn)
        draws = Draws(*drawn)
        return jitter(crop_batch(self._stack[images], draws, self.side), draws.colour)

    def eval_batches(self, rows: NDArray[np.intp], keep: bool = False) -> Iterator[list[Tensor]]:
        """Batches of `rows` as extraction sees them, normalised, one tensor for each backbone.

        With `keep` the cut pixels of these rows, in place of others, stay on a card that has room.
        """
        distinct = list(dict.fromkeys(self.preprocesses))
        for cut in self._cut(rows, keep):
            ready = {p: self._normalised(cut[p].float().div_(255), p) for p in distinct}
            yield [ready[preprocess] for preprocess in self.preprocesses]

    def forget(self) -> bool:
        """Give back what validation keeps on the device, for good; whether there was something."""
        kept, self._keeps, self._lying = self._lying, False, None
        return kept is not None

    def _cut(self, rows: NDArray[np.intp], keep: bool) -> Iterator[dict[Preprocess, Tensor]]:
        if self._lying is not None and np.array_equal(self._lying[0], rows):
            yield from self._lying[1]
            return
        done = []
        if keep:
            self._lying = None
            needed = len(rows) * sum(3 * p.crop**2 for p in set(self.preprocesses))
            keep = self._keeps and needed <= _room(self.device)
        for cut in self._cut_on_device(rows) if self.cuts_on_device else self._cut_here(rows):
            yield cut
            if keep:
                done.append(cut)
        if keep:
            self._lying = rows, done

    def _cut_here(self, rows: NDArray[np.intp]) -> Iterator[dict[Preprocess, Tensor]]:
        distinct = list(dict.fromkeys(self.preprocesses))

        def one(row: int) -> list[NDArray[np.uint8]]:
            image = Image.fromarray(self._decoded(row))
            return [preprocess.cut(image) for preprocess in distinct]

        work = [some.tolist() for some in self._parts(rows)]
        for cut in self._ahead(one, work):
            stacks = [torch.from_numpy(np.stack(same)) for same in zip(*cut, strict=True)]
            yield {p: stack.to(self.device) for p, stack in zip(distinct, stacks, strict=True)}

    def _cut_on_device(self, rows: NDArray[np.intp]) -> Iterator[dict[Preprocess, Tensor]]:
        for decoded in self._decoded_batches(rows):
            yield {
                p: decoded.cut(p, lambda tensor: tensor.to(self.device), str(self.device))
                for p in dict.fromkeys(self.preprocesses)
            }

    def _decoded_batches(self, rows: NDArray[np.intp]) -> Iterator[Decoded]:
        parts = self._parts(rows)
        if self._stack is not None:  # it lies on the device already
            for some in parts:
                images = self._stack[torch.from_numpy(some).to(self.device)]  # (b, 3, h, w)
                places = torch.arange(len(some))
                yield Decoded(
                    len(some), [Part(places, images.permute(0, 2, 3, 1), self.sizes[some])]
                )
            return

        def one(row: int) -> Image.Image:
            return Image.fromarray(self._decoded(row))

        for decoded in self._ahead(one, [some.tolist() for some in parts]):
            yield lay_out(decoded)

    def _parts(self, rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        return [rows[i : i + self._eval] for i in range(0, len(rows), self._eval)]

    def as_seen(self, batch: Tensor) -> list[Tensor]:
        """An augmented batch (b, 3, side, side) as each backbone takes it."""
        seen = []
        for preprocess in self.preprocesses:
            x, crop = batch, preprocess.crop
            if crop != self.side:
                x = functional.interpolate(x, (crop, crop), mode="bilinear", antialias=True)
            seen.append(self._normalised(x, preprocess))
        return seen

    def _normalised(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """Images (b, 3, crop, crop), 0 … 1, as the network takes them, channels last in memory."""
        mean, std = self._moments[preprocess]
        return (images - mean).div_(std).contiguous(memory_format=torch.channels_last)

    def _ahead(self, one: Callable[[Any], T], work: Sequence[Sequence[Any]]) -> Iterator[list[T]]:
        """`one` of each task, batch by batch, by threads that run ahead."""
        waiting: deque[list[Future[T]]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="featcache-pixels") as pool:
            try:
                for tasks in work:
                    waiting.append([pool.submit(one, task) for task in tasks])
                    if len(waiting) > _AHEAD:
                        yield [future.result() for future in waiting.popleft()]
                while waiting:
                    yield [future.result() for future in waiting.popleft()]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read_all(self, budget: int) -> None:
        used = 0
        for row, found in enumerate(self._decode_all()):
            if isinstance(found, str):
                self.bad[row] = found
                continue
            self.sizes[row] = torch.tensor(found.shape[:2])
            used += found.nbytes
            if used <= budget:
                self._kept[row] = found
        if used > budget:
            log.info(
                "%.1f GB of decoded images: %d of %d stay in memory, the others are decoded again "
                "each epoch", used / 1e9, len(self._kept), len(self._images),
            )  # fmt: skip

    def _decode_all(self) -> Iterator[NDArray[np.uint8] | str]:
        """Each image, or why it can't be decoded: by threads, or processes as for an extraction."""
        # No more at once: processes hand them over in shared memory.
        rows, step = range(len(self._images)), min(256, 64 * self._threads)
        parts = [rows[i : i + step] for i in range(0, len(rows), step)]
        largest = max(self.preprocesses, key=lambda preprocess: preprocess.at_least)
        if not (self._loading.processes and resizes(largest)):
            for done in self._ahead(self._try, parts):
                yield from done
            return
        with load_batches(self._images, np.array(rows), [largest], step, self._loading) as batches:
            for part, batch in zip(parts, batches, strict=True):
                found = _decoded_images(batch, largest)
                # Some they have cut: those that no device can.
                yield from (found[row] if row in found else self._try(row) for row in part)

    def _try(self, row: int) -> NDArray[np.uint8] | str:
        try:
            return self._decode(row, check=True)
        except BadImage as error:
            return error.problem
        except OSError as error:
            return f"can't be read: {error.strerror or error}"
        except MemoryError:
            return NO_MEMORY

    def _decoded(self, row: int) -> NDArray[np.uint8]:
        kept = self._kept.get(row)
        return self._decode(row) if kept is None else kept

    def _decode(self, row: int, check: bool = False) -> NDArray[np.uint8]:
        content = self._images.read(row)
        if check and has_changed(content, self._images.sha256[row]):
            raise BadImage("has changed since it was listed; run again with --rehash")
        alpha = self.preprocesses[0].alpha
        return in_turn(  # (h, w, 3)
            lambda reserve: np.array(decode(content, alpha, self._at_least, reserve)), self._budget
        )

    def _stacked(self) -> Tensor | None:
        """All images on the device, where they are of one size and no larger than the crop."""
        one_size = len(self._kept) == len(self.sizes) and bool((self.sizes == self.sizes[:1]).all())
        if not one_size or not len(self.sizes) or int(self.sizes.max()) > self.side:
            return None
        stack = np.stack([self._kept[row] for row in range(len(self._kept))])  # (n, h, w, 3)
        return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous().to(self.device)


def _decoded_images(batch: Batch, preprocess: Preprocess) -> dict[int, NDArray[np.uint8] | str]:
    """By row: images (h, w, 3) of a batch that are not cut, and why some can't be decoded."""
    found: dict[int, NDArray[np.uint8] | str] = {
        row: problem.text for row, problem in batch.problems.items()
    }
    decoded = batch.pixels[preprocess]
    for part in decoded.parts if isinstance(decoded, Decoded) else ():
        if part.sizes is None:
            continue
        sizes = part.sizes.expand(len(part.places), 2).tolist()
        for place, pixels, (h, w) in zip(part.places.tolist(), part.pixels, sizes, strict=True):
            # A copy: the memory is shared with the process.
            found[int(batch.rows[place])] = pixels[:h, :w].numpy().copy()
    return found


def _room(device: torch.device) -> int:
    """Bytes of a card that may hold what is validated on; none of the processor."""
    return torch.cuda.mem_get_info(device)[0] // _FREE if device.type == "cuda" else 0


def _moments(preprocess: Preprocess, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels, (1, 3, 1, 1) each."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        for v in (preprocess.mean, preprocess.std)
    )
    return mean, std


Rows = NDArray[np.intp]


def table(images: Images, backbones: Sequence[Backbone]) -> Features:
    """The rows of cached features of these images, with blocks of no columns.

    Folds and digests made of it are those of the cached features: they depend on ids, contents,
    labels, groups and splits only.
    """
    keys = tuple(backbone.key() for backbone in backbones)
    seen = tuple(backbone.trained_on for backbone in backbones)
    return Features(
        X=np.empty((len(images), 0), np.float32),
        y=images.labels,
        ids=images.ids,
        sha256=images.sha256,
        groups=images.groups,
        split=images.split,
        blocks=(0,) * len(backbones),
        names=tuple(backbone.name for backbone in backbones),
        keys=tuple(key.digest for key in keys),
        data=images.name,
        origins=keys,
        trained_on=seen if any(seen) else (),
    )


def validation_rows(
    features: Features, fold: Fold, share: float, seed: int, groups: bool = True
) -> tuple[Rows, Rows]:
    """Rows of a fold to train on, and rows to pick the best epoch on.

    If the fold tests on the data's own test split and there is a "val" split, it is that;
    else a share of the training rows, stratified, with equal images and (with `groups`) groups
    kept together.
    The second array is empty where `share` is 0, or too small to leave each class on both sides.

    Returns
    -------
    (train, validation) : int arrays
    """
    rows = fold.train
    own = features.split[rows] == "val"  # (n,)
    if fold.name == "test" and own.any() and not own.all():
        return rows[~own], rows[own]
    component = components(features, groups)[rows]  # (n,)
    train, held = hold_out(features.y[rows], component, share, seed, by_count=False)
    if share and not len(held):
        log.warning(
            "%s: %d training rows are too few to validate on: the last epoch counts",
            fold.name, len(rows),
        )  # fmt: skip
    return rows[train], rows[held]


def cached_vectors(images: Images, backbones: Sequence[Backbone], cache: str) -> Tensor:
    """The cached vectors of the un-augmented images, float32 (n, d).

    Raises
    ------
    CacheMissing
        If the cache lacks a backbone with these weights and this size.
    """
    store = Cache(cache)
    wanted, missing = [], []
    for backbone in backbones:
        keys = [backbone.key(precision) for precision in PRECISIONS]
        there = [key for key in keys if store.path(images.name, key).is_file()]
        if there:
            wanted.append(f"{backbone.name}@{there[0].digest}")
        else:
            missing.append(backbone)
    if missing:
        which = ", ".join(f"{one.name} at {one.preprocess.crop} px" for one in missing)
        files = [(store.path(images.name, key), key) for key in (one.key() for one in missing)]
        entries = [Entry(images.name, path, key, 0, 0, 0, 0.0) for path, key in files]
        raise CacheMissing(
            f"the cache has no features of {which} for {images.name}, to begin with",
            "Leave --warm-start out, or:\n"
            + extract_commands(entries, images.source, options=images.options),
        )
    chosen = store.choose(images, wanted)
    features = store.features(images, chosen)
    names = {key: name for name, key in zip(features.names, features.keys, strict=True)}
    features = features.select([names[one.partition("@")[2]] for one in wanted])
    where = {id_: row for row, id_ in enumerate(features.ids.tolist())}
    absent = [id_ for id_ in images.ids.tolist() if id_ not in where]
    if absent:
        raise CacheMissing(
            f"the cache has no vectors of {counted(len(absent), 'image')} ({absent[0]}, …)",
            extract_commands(chosen, images.source, options=images.options),
        )
    order = np.array([where[id_] for id_ in images.ids.tolist()], np.intp)
    return torch.from_numpy(features.X[order])


def rival_keys(backbone: Backbone) -> list[str]:
    """Digests of the cache keys of a backbone as it is, in every precision."""
    return [backbone.key(precision).digest for precision in PRECISIONS]


def extraction_seconds(data: str, backbones: Sequence[Backbone], cache: str) -> float | None:
    """What the features of these backbones took to compute; None where the cache lacks some.

    Each file says what its own extraction took, all backbones of it together: the longest counts.
    """
    store, found = Cache(cache), []
    for backbone in backbones:
        paths = [store.path(data, backbone.key(precision)) for precision in PRECISIONS]
        there = [path for path in paths if path.is_file()]
        if not there:
            return None
        with FeatureFile(there[0]) as file:
            found.append(file.seconds)
    longest = max(found)
    return None if math.isnan(longest) else longest
