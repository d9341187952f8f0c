"""Splits: which rows train and which are tested; groups, and views of one image, stay together."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, RecipeError, counted, unknown
from featcache.fitting.stratified import stratified_groups
from featcache.images.files import KINDS
from featcache.store.features import NO_VIEW, Features

log = logging.getLogger("featcache")

Rows = NDArray[np.intp]

SEEDS = 2**32  # NumPy's old generator, which scikit-learn draws with, takes the numbers below

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
        "fold1", "fold2", …; "repeat1.fold1", … where folds are repeated; "test" or "val" for the
        data's own split.
    leaky : bool, default False
        Whether rows of one image, or group, were free to go to both sides.
    """

    train: Rows
    test: Rows
    name: str
    leaky: bool = False


def make_folds(
    features: Features,
    folds: int | None = None,
    test_split: bool | None = None,
    group: str | None = None,
    seed: int = 0,
    *,
    repeats: int = 1,
    balance: bool = False,
    leaky: bool = False,
) -> list[Fold]:
    """The data's own test split, or stratified folds that keep linked rows together.

    With neither `folds` nor `test_split`: data with a "test" split gives one fold, which tests
    on it and trains on every other row ("train", "val" and rows without a split: heads take
    their own validation share from the training rows); data with a "val" but no "test" split is
    tested on "val", which is logged; other data gives five folds. The data's own split is
    never changed; see `leakage` for rows that are linked across its border.

    Folds are drawn over the sorted ids, and their rows are in that order: the same images in
    another order get the same folds and the same fits.

    If the features have views, folds are made of the images alone; the views of a fold's
    training images then train with it. No view is tested.

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
        Shuffles the rows into folds, and chooses views.
    repeats : int, default 1
        K-fold this many times, shuffled anew each time.
    balance : bool, default False
        Of the views take only those that bring each class, inside each fold, to the count of the
        most frequent one; by default all are taken.
    leaky : bool, default False
        Redo a protocol that leaks: views are made (and balanced) first, then every row is split as
        if it stood alone, views, equal images and groups included. The folds say that they are.

    Returns
    -------
    list of Fold
        Test rows of K folds are disjoint and cover all images.

    Raises
    ------
    DataError
        If only one class is there; a class has fewer rows, or groups, than there are folds; a
        side of a fold is empty; or an own split is asked for that the data doesn't have.
    RecipeError
        If both `folds` and `test_split` are asked for, or repeats of the data's own split, or
        balance without views; or the seed is out of range.
    """
    if folds is not None and test_split:
        raise RecipeError("both folds and the test split are asked for", "Choose one of them.")
    if group is not None and group not in KINDS:
        raise unknown("group", group, KINDS)
    if group == "subject" and len(np.unique(features.groups)) < 2:
        raise DataError(
            "the features have no groups, or a single one", "Name the group column on extraction."
        )
    if not 0 <= seed < SEEDS:
        raise RecipeError(f"seed is {seed}", f"Give a number from 0 to {SEEDS - 1}.")
    check_plan(viewed(features), balance, leaky, False, repeats)
    pool = _pool(features, balance, leaky, seed)  # (p,) what is dealt out, by id
    if len(np.unique(features.y[pool])) < 2:
        raise DataError(
            f"only one class among {counted(len(pool), 'row')}: "
            f"{sorted(set(features.y[pool].tolist()))}",
            "Classification needs images of at least two classes.",
        )
    own = "test" if (features.split == "test").any() else "val"
    has_own = bool((features.split == own).any())
    if test_split and not has_own:
        raise DataError("the data has no test split of its own", "Ask for folds instead.")
    if folds is None and test_split is not False and has_own:
        if repeats > 1:
            raise RecipeError(
                f"{repeats} repeats of the data's own {own} split would all be the same",
                "Ask for folds too: --folds 5.",
            )
        made = [_own_split(features, own, pool, leaky)]
    else:
        component = (
            np.arange(len(pool)) if leaky else components(features, groups=group != "image")[pool]
        )
        k = 5 if folds is None else folds
        made = _repeated(features.y[pool], pool, k, component, seed, repeats, leaky)
    if leaky:
        return made
    trains = add_views(features, {fold.name: fold.train for fold in made}, balance, seed)
    return [replace(fold, train=train) for fold, train in zip(made, trains, strict=True)]


_SEED = "@seed"


def seeded(fold: str, seed: int) -> str:
    """The name of a fold that is fitted with several seeds: "fold1@seed3"."""
    return f"{fold}{_SEED}{seed}"


def unseeded(fold: str) -> str:
    """The fold's own name."""
    return fold.partition(_SEED)[0]


def describe_folds(folds: Sequence[Fold]) -> str:
    """For instance "test split", "5 folds" or "3 x 5 folds"; leaky ones say so."""
    repeats = len({fold.name.partition(".")[0] for fold in folds if "." in fold.name})
    if len(folds) == 1:
        text = f"{folds[0].name} split"
    else:
        text = f"{repeats} x {len(folds) // repeats} folds" if repeats else f"{len(folds)} folds"
    return f"{text}, leaky" if is_leaky(folds) else text


def is_leaky(folds: Sequence[Fold]) -> bool:
    """Whether any of the folds was made without regard to what belongs together."""
    return any(fold.leaky for fold in folds)


def groups_to_keep(features: Features, folds: Sequence[Fold]) -> Rows | None:
    """`components`, for fits that hold rows back; None where every row stands alone.

    Or is to be taken so, in leaky folds.
    """
    if is_leaky(folds):
        return None
    component = components(features)
    return component if len(np.unique(component)) < len(component) else None


def components(features: Features, groups: bool = True) -> Rows:
    """A number for each row; rows linked by content or (with `groups`) by group share it.

    Links carry on: two rows share a number where a chain of equal images and shared groups
    leads from one to the other. Int array of shape (n,), numbered from 0 by the sorted ids.
    """
    from scipy.sparse import coo_array, csgraph

    n = len(features)
    # If the content is not known, a view is still linked to its image.
    unknown_ = features.sha256 == ""
    texts = np.where(unknown_, features.sources, features.sha256) if unknown_.any() else None
    content = factorize(features.sha256 if texts is None else texts)  # (n,)
    subject = factorize(features.groups)
    # An empty group links nothing: each such row gets a number of its own.
    alone = (features.groups == "") if groups else np.ones(n, dtype=bool)
    subject = np.where(alone, n + np.arange(n), subject)
    # Rows, contents and groups are the nodes of one graph: 0..n, n..3n, 3n..5n.
    ends = np.concatenate((n + content, 3 * n + subject))
    graph = coo_array((np.ones(2 * n), (np.tile(np.arange(n), 2), ends)), shape=(5 * n, 5 * n))
    labels = csgraph.connected_components(graph, directed=False)[1][:n]
    order = id_order(features)
    _, first, number = np.unique(labels[order], return_index=True, return_inverse=True)
    found = np.empty(n, np.intp)
    found[order] = np.argsort(np.argsort(first))[number]
    return found


def id_order(features: Features) -> Rows:
    """The rows by the ids of their images, each kind of view behind the one that comes first."""
    sources, kind = features.sources, np.zeros(len(features), np.intp)
    if viewed(features):
        _, first, number = np.unique(features.view, return_index=True, return_inverse=True)
        kind = first[number]
    same = kind[1:] == kind[:-1]
    if (np.where(same, sources[1:] > sources[:-1], kind[1:] > kind[:-1])).all():
        return np.arange(len(features))
    return np.lexsort((sources, kind))


def folds_to_json(folds: Sequence[Fold], features: Features) -> list[dict[str, Any]]:
    """The folds by image ids, as plain JSON values."""
    return [
        {
            "name": fold.name,
            "train": features.ids[fold.train].tolist(),
            "test": features.ids[fold.test].tolist(),
            **({"leaky": True} if fold.leaky else {}),
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
            f"the features lack {counted(len(missing), 'id')} of the saved folds: "
            f"{', '.join(missing[:_SHOWN])}",
            "Make new folds, or use the features that these were made for.",
        )
    return [
        Fold(
            np.array([where[id_] for id_ in fold["train"]], dtype=np.intp),
            np.array([where[id_] for id_ in fold["test"]], dtype=np.intp),
            fold["name"],
            bool(fold.get("leaky", False)),
        )
        for fold in saved
    ]


def _pool(features: Features, balance: bool, leaky: bool, seed: int) -> Rows:
    """The rows that are dealt out to folds, by id."""
    order = id_order(features)
    if leaky and not balance:
        return order
    chosen = np.isin(order, balanced(features, seed)) if leaky else features.view[order] == NO_VIEW
    dealt: Rows = order[chosen]
    return dealt


def _own_split(features: Features, own: str, pool: Rows, leaky: bool) -> Fold:
    """One fold: test on the data's own split, train on the rest."""
    mine = features.split[pool] == own  # (p,)
    test, train = pool[mine], pool[~mine]
    if own == "val":
        log.info("%s has no test split: tested on %s", features.data, counted(len(test), "val row"))
    if not len(train):
        raise DataError(
            f"the {own} split has all there is, {counted(len(test), 'row')}",
            "Ask for folds instead.",
        )
    unseen = np.setdiff1d(features.y[test], features.y[train]).tolist()
    if unseen:
        log.warning(
            "%s only in the %s rows: none can be predicted, all count as wrong",
            f"label {unseen[0]!r} is" if len(unseen) == 1 else f"{len(unseen)} labels are",
            own,
        )
    return Fold(train, test, own, leaky)


def _repeated(
    y: NDArray[np.str_], pool: Rows, k: int, component: Rows, seed: int, repeats: int, leaky: bool
) -> list[Fold]:
    """K folds over the pool, `repeats` times; the first time with the seed itself."""
    _check_k(y, component, k)
    groups = component if len(np.unique(component)) < len(y) else None
    made = []
    for repeat in range(repeats):
        mine = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0]) if repeat else seed
        number = k_folds(y, groups, k, mine)  # (p,)
        for i in range(k):
            name = f"repeat{repeat + 1}.fold{i + 1}" if repeats > 1 else f"fold{i + 1}"
            fold = Fold(pool[number != i], pool[number == i], name, leaky)
            if not len(fold.test) or not len(fold.train):
                raise DataError(
                    f"{fold.name} of {k} has {len(fold.train)} training and "
                    f"{counted(len(fold.test), 'test row')}",
                    "A few large groups fill the other folds: ask for fewer folds.",
                )
            made.append(fold)
    return made


def _check_k(y: NDArray[np.str_], component: Rows, k: int) -> None:
    if k < 2:
        raise RecipeError(counted(k, "fold"), "Give 2 or more.")
    if len(y) < k:
        raise DataError(
            f"{counted(len(y), 'sample')} can't fill {k} folds",
            f"Ask for at most {counted(len(y), 'fold')}.",
        )
    unit = "group" if len(np.unique(component)) < len(y) else "image"
    for label in np.unique(y).tolist():
        count = len(np.unique(component[y == label]))
        if count < k:
            raise DataError(
                f"class {label!r} has {counted(count, unit)}, fewer than {k} folds",
                f"Ask for {count} folds, or add images of {label!r}."
                if count > 1
                else f"Add images of {label!r}, or leave that class out.",
            )


def inner_folds(
    y: NDArray[Any], groups: NDArray[Any] | None, folds: int, seed: int
) -> list[tuple[Rows, Rows]]:
    """Stratified folds of training rows, for what a fit learns from rows that it held out.

    Parameters
    ----------
    y, groups : arrays of shape (n,)
        Labels; rows with equal groups go into one fold, with None every row stands alone.
    folds : int
        How many; a class with fewer rows lowers it to its rows.
    seed : int

    Returns
    -------
    list of (rows to fit on, rows held out)
        Empty if a class is too rare: one row, or a fold that would be empty or take all of it.
    """
    from sklearn.model_selection import PredefinedSplit

    classes, counts = np.unique(y, return_counts=True)
    k = min(folds, int(counts.min()))
    if k < 2:
        return []
    made = list(PredefinedSplit(k_folds(y, groups, k, seed)).split())
    whole = len(made) == k and all(len(np.unique(y[rest])) == len(classes) for rest, _ in made)
    return made if whole else []


def hold_out(
    y: NDArray[Any], groups: NDArray[Any] | None, share: float, seed: int, by_count: bool = True
) -> tuple[Rows, Rows]:
    """Rows to train on and a stratified share of the rows that is held out.

    Parameters
    ----------
    y, groups : arrays of shape (n,)
        Labels; rows with equal groups stay together, and the share is only about met; with None
        every row stands alone.
    share : float
        In [0, 1).
    seed : int
    by_count : bool, default True
        Hold nothing out, too, if either side comes to fewer rows than there are classes; False,
        which needs groups, draws even so: a large group can bring all classes along.

    Returns
    -------
    (train, held) : int arrays
        All rows and none if `share` is 0, or a class is too rare to be on both sides.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    everything, nothing = np.arange(len(y)), np.empty(0, dtype=np.intp)
    classes, counts = np.unique(y, return_counts=True)
    count = math.ceil(share * len(y))
    if not share or (by_count and min(count, len(y) - count) < len(classes)) or counts.min() < 2:
        return everything, nothing
    if groups is None:
        splitter = StratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        train, held = next(splitter.split(everything, y))
    else:
        first = stratified_groups(y, groups, max(2, round(1 / share)), seed) == 0  # (n,)
        train, held = np.flatnonzero(~first), np.flatnonzero(first)
    if any(len(np.unique(y[side])) < len(classes) for side in (train, held)):
        return everything, nothing
    return train, held


def k_folds(y: NDArray[Any], groups: NDArray[Any] | None, k: int, seed: int) -> Rows:
    """The fold of each row, from 0: stratified, with groups whole if there are any."""
    from sklearn.model_selection import StratifiedKFold

    if groups is not None:
        return stratified_groups(y, groups, k, seed)
    number = np.empty(len(y), np.intp)
    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
    for i, (_, test) in enumerate(splitter.split(np.zeros(len(y)), y)):
        number[test] = i
    return number


_AT_ONCE = 2**16  # rows


def factorize(values: NDArray[np.str_]) -> NDArray[np.intp]:
    """A number for each text, from 0; equal texts share it. In no particular order, shape (n,).

    As the inverse of `np.unique`, which sorts the texts and makes several copies of them: for a
    million digests 256 MB each.

    Parameters
    ----------
    values : str array of shape (n,)
    """
    n = len(values)
    if not n:
        return np.empty(0, np.intp)
    letters = np.ascontiguousarray(values).view(np.uint32).reshape(n, -1)  # (n, longest)
    odd = np.random.default_rng(0).integers(2**63, size=letters.shape[1], dtype=np.uint64) * 2 + 1
    digest = np.concatenate(
        [letters[start : start + _AT_ONCE] @ odd for start in range(0, n, _AT_ONCE)]
    )  # (n,)
    order = np.argsort(digest, kind="stable")
    new = np.diff(digest[order]) != 0  # (n - 1,)
    for again in np.split(np.flatnonzero(~new), range(_AT_ONCE, n, _AT_ONCE)):
        if (values[order[again]] != values[order[again + 1]]).any():  # two texts, one digest
            return np.asarray(np.unique(values, return_inverse=True)[1], np.intp)
    found = np.empty(n, np.intp)
    found[order] = np.concatenate([[0], np.cumsum(new)])
    return found


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
    order = id_order(features)
    views = order[features.view[order] != NO_VIEW]  # (v,)
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
    order = id_order(features)
    image = features.view[order] == NO_VIEW
    images = order[image]
    more, short = fill_up(features.y, images, order[~image], [seed])
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
        chosen.append(mine[np.sort(rng.permutation(len(mine))[: most - count])])
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
