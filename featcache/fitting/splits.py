"""Which rows train and which are tested."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featcache.errors import DataError, RecipeError, unknown
from featcache.store.features import Features

log = logging.getLogger("featcache")

Rows = NDArray[np.intp]

_GROUPS = ("image", "subject")
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows to fit on and rows to score.

    Attributes
    ----------
    train : int array of shape (n_train,)
        Positions in the features.
    test : int array of shape (n_test,)
        Positions in the features.
    name : str
        "fold1", "fold2", …; "test" or "val" for the data's own split.
    """

    train: Rows
    test: Rows
    name: str


def make_folds(
    features: Features,
    folds: int | None = None,
    test_split: bool | None = None,
    group: str | None = None,
    seed: int = 0,
) -> list[Fold]:
    """The data's own test split, or stratified folds that keep linked rows together.

    With neither `folds` nor `test_split`: data with a "test" split gives one fold, which tests
    on it and trains on every other row ("train", "val" and rows without a split: heads take
    their own validation share from the training rows); data with a "val" but no "test" split is
    tested on "val", which is logged; other data gives five folds. The data's own split is
    never changed, but rows in it that are linked across its border are logged as a warning.

    Parameters
    ----------
    features : Features
    folds : int, default None
        K for K-fold over all rows, whatever split the data has of its own.
    test_split : bool, default None
        True: the data's own split or an error; False: folds.
    group : {None, "image", "subject"}, default None
        None: rows of one group, and equal images, stay in one fold; "image": only equal images
        do; "subject": as None, and an error where the features have no groups.
    seed : int, default 0
        Shuffles the rows into folds.

    Returns
    -------
    list of Fold
        Test rows of K folds are disjoint and cover all rows.

    Raises
    ------
    DataError
        Where only one class is there; a class has fewer rows, or groups, than there are folds; a
        side of a fold is empty; or an own split is asked for that the data doesn't have.
    RecipeError
        Where both `folds` and `test_split` are asked for.
    """
    if folds is not None and test_split:
        raise RecipeError("both folds and the test split are asked for", "Choose one of them.")
    if group is not None and group not in _GROUPS:
        raise unknown("group", group, _GROUPS)
    if group == "subject" and not (features.groups != "").any():
        raise DataError("the features have no groups", "Name the group column on extraction.")
    if len(np.unique(features.y)) < 2:
        raise DataError(
            f"only one class among {len(features)} rows: {sorted(set(features.y.tolist()))}",
            "Classification needs images of at least two classes.",
        )
    linked = components(features, groups=group != "image")
    own = "test" if (features.split == "test").any() else "val"
    has_own = bool((features.split == own).any())
    if test_split and not has_own:
        raise DataError("the data has no test split of its own", "Ask for folds instead.")
    if folds is None and test_split is not False and has_own:
        return [_own_split(features, own, linked)]
    return _k_folds(features, 5 if folds is None else folds, linked, seed)


def components(features: Features, groups: bool = True) -> Rows:
    """A number for each row; rows linked by content or (with `groups`) by group share it.

    Links carry on: two rows share a number where a chain of equal images and shared groups
    leads from one to the other. Int array of shape (n,), numbered from 0.
    """
    n = len(features)
    _, content = np.unique(features.sha256, return_inverse=True)  # (n,)
    # An empty digest or group links nothing: each such row gets a number of its own.
    content = np.where(features.sha256 == "", n + np.arange(n), content)
    _, subject = np.unique(features.groups, return_inverse=True)
    alone = (features.groups == "") if groups else np.ones(n, dtype=bool)
    subject = np.where(alone, n + np.arange(n), subject)
    # Rows, contents and groups are the nodes of one graph: 0..n, n..3n, 3n..5n.
    ends = np.concatenate((n + content, 3 * n + subject))
    graph = coo_array((np.ones(2 * n), (np.tile(np.arange(n), 2), ends)), shape=(5 * n, 5 * n))
    labels = connected_components(graph, directed=False)[1][:n]
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.intp)  # (n,)


def folds_to_json(folds: Sequence[Fold], features: Features) -> list[dict[str, Any]]:
    """The folds by image ids, as plain JSON values."""
    return [
        {
            "name": fold.name,
            "train": features.ids[fold.train].tolist(),
            "test": features.ids[fold.test].tolist(),
        }
        for fold in folds
    ]


def folds_from_json(saved: Sequence[dict[str, Any]], features: Features) -> list[Fold]:
    """The inverse of `folds_to_json`, for the same images in any order.

    Raises
    ------
    DataError
        For an id that the features don't have.
    """
    where = {id_: i for i, id_ in enumerate(features.ids.tolist())}
    missing = [id_ for fold in saved for id_ in (*fold["train"], *fold["test"]) if id_ not in where]
    if missing:
        raise DataError(
            f"{len(missing)} ids of the saved folds are not in the features: "
            f"{', '.join(missing[:_SHOWN])}",
            "Make new folds, or use the features that these were made for.",
        )
    return [
        Fold(
            np.array([where[id_] for id_ in fold["train"]], dtype=np.intp),
            np.array([where[id_] for id_ in fold["test"]], dtype=np.intp),
            fold["name"],
        )
        for fold in saved
    ]


def _own_split(features: Features, own: str, linked: Rows) -> Fold:
    """One fold: test on the data's own split, train on the rest."""
    test, train = np.flatnonzero(features.split == own), np.flatnonzero(features.split != own)
    if own == "val":
        log.info("%s has no test split: tested on its %d val rows", features.data, len(test))
    if not len(train):
        raise DataError(f"all {len(test)} rows are in the {own} split", "Ask for folds instead.")
    across = test[np.isin(linked[test], linked[train])]
    if len(across):
        log.warning(
            "%d of %d %s rows are equal to, or in one group with, a training row: %s",
            len(across),
            len(test),
            own,
            ", ".join(features.ids[across[:_SHOWN]].tolist()),
        )
    return Fold(train, test, own)


def _k_folds(features: Features, k: int, linked: Rows, seed: int) -> list[Fold]:
    """Stratified folds over all rows; linked rows are tested together."""
    if k < 2:
        raise RecipeError(f"{k} folds", "Give 2 or more.")
    n = len(features)
    if n < k:
        raise DataError(f"{n} samples can't fill {k} folds", f"Ask for at most {n} folds.")
    grouped = linked.max() + 1 < n
    for label in np.unique(features.y).tolist():
        count = len(np.unique(linked[features.y == label]))
        if count < k:
            raise DataError(
                f"class {label!r} has {count} {'groups' if grouped else 'images'}, "
                f"fewer than {k} folds",
                f"Ask for {count} folds, or add images of {label!r}."
                if count > 1
                else f"Add images of {label!r}, or leave that class out.",
            )
    if grouped:
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
        pairs = list(splitter.split(np.zeros(n), features.y, linked))
    else:
        splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
        pairs = list(splitter.split(np.zeros(n), features.y))
    made = [Fold(train, test, f"fold{i}") for i, (train, test) in enumerate(pairs, start=1)]
    for fold in made:
        if not len(fold.test) or not len(fold.train):
            raise DataError(
                f"{fold.name} of {k} has {len(fold.train)} training and {len(fold.test)} test rows",
                "A few large groups fill the other folds: ask for fewer folds.",
            )
    return made
