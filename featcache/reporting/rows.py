"""Rows: which rows a run was trained and tested on, as text to take a digest of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from featcache.fitting.splits import Fold, folds_to_json, is_leaky
from featcache.hashing import canonical_json
from featcache.store.features import Features

_AT_ONCE = 2**14  # rows


def rows_json(features: Features, folds: Sequence[Fold]) -> Iterator[str]:
    """The canonical JSON of the folds and of all rows, sorted by id, in pieces.

    Together it is some 200 bytes a row and fold.
    """
    yield '{"folds":['
    for number, fold in enumerate(folds):
        (plain,) = folds_to_json([fold], features)
        yield "," * (number > 0) + canonical_json(
            {**plain, "train": sorted(plain["train"]), "test": sorted(plain["test"])}
        )
    yield "]," + '"leaky":true,' * is_leaky(folds) + '"rows":['
    columns = (features.ids, features.sha256, features.y, features.groups)
    order = np.argsort(features.ids)
    for start in range(0, len(order), _AT_ONCE):
        part = order[start : start + _AT_ONCE]
        rows = list(zip(*(column[part].tolist() for column in columns), strict=True))
        yield "," * (start > 0) + canonical_json(rows)[1:-1]
    yield "]}"
