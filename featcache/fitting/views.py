"""Views as rows: which of them train beside the images that they are of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.errors import RecipeError
from featcache.store.features import NO_VIEW, Features

log = logging.getLogger("featcache")

Rows = NDArray[np.intp]


def add_views(
    features: Features, trains: Mapping[str, Rows], balance: bool, seed: int
) -> list[Rows]:
    """The training rows of each fold, and the views of those images behind them.

    Parameters
    ----------
    features : Features
    trains : mapping of str to int array
        For each fold's name the images that train.
    balance : bool
        Only as many views as it takes to bring each class to the most frequent one's count.
    seed : int
        Chooses the views, where not all are taken.
    """
    views = np.flatnonzero(features.view != NO_VIEW)  # (v,)
    if not len(views):
        return list(trains.values())
    where = {id_: row for row, id_ in enumerate(features.ids.tolist())}
    source = np.array([where.get(id_, -1) for id_ in features.sources[views].tolist()])  # (v,)
    made, short = [], []
    for number, (name, train) in enumerate(trains.items()):
        mine = views[np.isin(source, train)]
        if balance:
            mine, lacking = fill_up(features.y, train, mine, [seed, number])
            short += [f"{text} in {name}" for text in lacking]
        made.append(np.concatenate([train, mine]))
    _say_short(short)
    return made


def balanced(features: Features, seed: int) -> Rows:
    """All images and the views that bring each class to the most frequent one's count."""
    images = np.flatnonzero(features.view == NO_VIEW)
    more, short = fill_up(features.y, images, np.flatnonzero(features.view != NO_VIEW), [seed])
    _say_short(short)
    return np.concatenate([images, more])


def fill_up(
    y: NDArray[np.str_], images: Rows, views: Rows, seed: Sequence[int]
) -> tuple[Rows, list[str]]:
    """Views that bring each class to the count of the most frequent one, and what is lacking.

    Returns
    -------
    (chosen, lacking) : int array, list of str
        Positions among `views`; for each class that they are too few for, a phrase.
    """
    rng = np.random.default_rng(seed)
    labels, counts = np.unique(y[images], return_counts=True)
    most = int(counts.max(initial=0))
    chosen, lacking = [np.empty(0, np.intp)], []
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        mine = views[y[views] == label]
        chosen.append(np.sort(rng.permutation(mine)[: most - count]))
        if count + len(mine) < most:
            lacking.append(f"{label!r} has {count + len(mine)} of {most}")
    return np.concatenate(chosen), lacking


def viewed(features: Features) -> list[str]:
    """The names of the views among the rows, sorted."""
    return sorted(set(features.view.tolist()) - {NO_VIEW})


def only_images(features: Features) -> Features:
    """The rows that are no views."""
    images = features.view == NO_VIEW
    return features if images.all() else features.rows(images)


def check_plan(view: Sequence[str], balance: bool, leaky: bool, strict: bool, repeats: int) -> None:
    """Refuse what can't go together, before any work is done.

    Raises
    ------
    RecipeError
    """
    if balance and not view:
        raise RecipeError("balance has no views to fill up with", "Name some: --view hflip,vflip.")
    if leaky and strict:
        raise RecipeError(
            "leaky and strict exclude each other",
            "A leaky protocol is one that strict refuses: leave one of them out.",
        )
    if repeats < 1:
        raise RecipeError(f"{repeats} repeats", "Give 1 or more.")


def _say_short(lacking: Sequence[str]) -> None:
    if lacking:
        log.warning(
            "there are not views enough to balance the classes: %s%s",
            "; ".join(lacking[:3]),
            f"; and {len(lacking) - 3} more" if len(lacking) > 3 else "",
        )
