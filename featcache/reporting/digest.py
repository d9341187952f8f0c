"""Digest and name of a run: what tells it from every other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from featcache.errors import RecipeError
from featcache.fitting.splits import Fold, folds_to_json, is_leaky
from featcache.hashing import canonical_json, sha256_json, sha256_pieces
from featcache.store.features import Features

FORMAT = 1
_LONGEST = 180  # bytes of a candidate's name; file systems take 255 for a folder's
_AT_ONCE = 2**14  # rows


def rows_digest(features: Features, folds: Sequence[Fold]) -> str:
    """A digest of which rows were trained on and tested on, in any order.

    Their labels are in it, and their groups: intervals and tests depend on those.
    """
    return sha256_pieces(rows_json(features, folds))


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


def run_digest(
    features: Features,
    rows: str,
    fusion: Any,
    head: Any,
    seed: int,
    settings: Mapping[str, Any],
) -> str:
    """A digest of all that a run's numbers depend on: equal means that there is nothing to redo.

    `fusion` and `head` are names, or what `Candidate.identity` says of objects.

    Raises
    ------
    RecipeError
        For a setting that is no plain number, text, list or mapping.
    """
    try:
        canonical_json(settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"the settings {dict(settings)} hold something that is no plain value: {error}",
            "Use numbers, text, true, false, or lists of them.",
        ) from None
    return sha256_json(
        {
            "format": FORMAT,
            "keys": features.keys,
            "backbones": features.names,
            "rows": rows,
            "fusion": fusion,
            "head": head,
            "seed": seed,
            "settings": settings,
        }
    )


def run_name(candidate: str, view: Sequence[str], balance: bool) -> str:
    """A candidate's name, and what trained beside the images.

    For instance "resnet18.concat.mlp.views-hflip+rot90.balanced".
    """
    parts = [candidate, *([f"views-{'+'.join(view)}"] if view else []), *["balanced"] * balance]
    return ".".join(parts)


def folder_name(name: str, digest: str) -> str:
    """The run folder's name for a candidate's; a long one, as of many backbones, is shortened."""
    if len((own := name.replace(":", ".")).encode()) <= _LONGEST:
        return f"{own}.{digest[:8]}"
    return f"{own.encode()[: _LONGEST - 60].decode(errors='ignore')}~{own[-20:]}.{digest[:16]}"
