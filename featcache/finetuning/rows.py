"""Rows: the images of a fine-tuning as stage 2 sees them, so that both share folds and digests."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.backbone import Backbone
from featcache.fitting.grouped import stratified_groups
from featcache.fitting.splits import Fold, components
from featcache.images.manifest import Images
from featcache.store.features import Features

log = logging.getLogger("featcache")

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

    Where the fold tests on the data's own test split and there is a "val" split, it is that;
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
    if not share:
        return rows, rows[:0]
    k = max(2, round(1 / share))
    linked = components(features, groups)[rows]  # (n,)
    held = stratified_groups(features.y[rows], linked, k, seed) == 0  # (n,)
    classes = len(np.unique(features.y[rows]))
    if any(len(np.unique(features.y[rows[side]])) < classes for side in (held, ~held)):
        log.warning(
            "%s: %d training rows are too few to validate on: the last epoch counts",
            fold.name, len(rows),
        )  # fmt: skip
        return rows, rows[:0]
    return rows[~held], rows[held]
