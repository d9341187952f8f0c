"""torchvision's classification data sets, read whole: pixels, labels and splits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, unknown

Pixels = NDArray[np.uint8]
_SPLITS = (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test"))


def load(name: str, root: Path, download: bool = True) -> tuple[list[Pixels], list[str], list[str]]:
    """Read every split of `torchvision.datasets.<name>`.

    Parameters
    ----------
    name : str
        As torchvision spells it: "CIFAR10", "MNIST", "SVHN", "Flowers102", …
    root : Path
        Where its files are, or go when they are downloaded.
    download : bool, default True
        Download them if they are not there.

    Returns
    -------
    arrays : list of uint8 arrays of shape (h, w) or (h, w, 3)
    labels : list of str
        Class names where the data set has them.
    split : list of str
        "train", "val", "test" or "".

    Raises
    ------
    UnknownName
        If torchvision has no such data set.
    DataError
        If it is not there and can't be downloaded, or its targets are no classes.
    """
    import torchvision.datasets as library

    known = [n for n in library.__all__ if inspect.isclass(getattr(library, n))]
    if name not in known:
        raise unknown("torchvision data set", name, known)
    arrays: list[Pixels] = []
    labels: list[str] = []
    split: list[str] = []
    for part, dataset in _splits(name, getattr(library, name), root, download):
        names = _class_names(dataset)
        for i in range(len(dataset)):
            image, target = dataset[i]
            if not isinstance(target, int | np.integer) or not hasattr(image, "convert"):
                raise DataError(f"torchvision's {name} is no image classification data set")
            arrays.append(np.asarray(image))
            labels.append(names[int(target)] if names else str(target))
        split += [part] * (len(arrays) - len(split))
    return arrays, labels, split


def _splits(name: str, cls: Any, root: Path, download: bool) -> Iterator[tuple[str, Any]]:
    accepted = inspect.signature(cls.__init__).parameters
    options: dict[str, Any] = {"root": str(root)} if "root" in accepted else {}
    if "download" in accepted:
        options["download"] = download
    if "train" in accepted:
        yield "train", _construct(name, cls, root, {**options, "train": True})
        yield "test", _construct(name, cls, root, {**options, "train": False})
    elif "split" in accepted:
        found = False
        for theirs, ours in _SPLITS:
            here = {"download": False} if "download" in options else {}
            try:
                dataset = cls(**{**options, **here, "split": theirs})
            except (ValueError, TypeError):  # this data set has no split of that name
                continue
            except (RuntimeError, OSError):
                dataset = _construct(name, cls, root, {**options, "split": theirs})
            found = True
            yield ours, dataset
        if not found:
            raise DataError(f"torchvision's {name} has no split that featcache knows")
    else:
        yield "", _construct(name, cls, root, options)


def _construct(name: str, cls: Any, root: Path, options: dict[str, Any]) -> Any:
    try:
        return cls(**options)
    except TypeError as error:
        raise DataError(f"torchvision's {name} can't be opened by name: {error}") from None
    except (OSError, RuntimeError, ValueError) as error:
        if options.get("download") is False:
            raise DataError(
                f"torchvision's {name} is not below {root.resolve()}",
                f"featcache extract downloads it. Features that are in the cache are found by the "
                f"data set's name: --data {name.lower()}",
            ) from None
        raise DataError(
            f"torchvision's {name} is not below {root.resolve()} and can't be downloaded: {error}",
            "Download it on a machine with a network, copy its files there, and pass that folder "
            "with --data-root; or point --data at a folder of images.",
        ) from None


def _class_names(dataset: Any) -> Sequence[str]:
    classes = getattr(dataset, "classes", None)
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else []
