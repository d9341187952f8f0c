"""Ranking: which backbones look promising before any head is fitted, and which are redundant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, RecipeError, counted
from featcache.fitting.blocks import slices
from featcache.fitting.fusions.concat import unit_rows
from featcache.fitting.splits import Rows, components, only_images
from featcache.store.features import Features

Matrix = NDArray[np.float64]

_CHUNK = 500
_ROUNDS = 100
_CLOSE = 1e-6  # relative change of alpha / beta at which the iteration stops


@dataclass(frozen=True, eq=False)
class Ranking:
    """What the features alone say of each backbone.

    Attributes
    ----------
    names : tuple of str
        The best LogME first.
    widths : tuple of int
    logme : tuple of float
        See `logme`; higher is better, comparable within one data set only.
    knn : tuple of float
        See `knn_accuracy`.
    cka : float64 array of shape (k, k)
        See `linear_cka`; 1 on the diagonal, near 1 for backbones that say the same.
    rows : int
        Training rows that were looked at.
    queries : int
        How many of them the nearest neighbours were looked up for.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    logme: tuple[float, ...]
    knn: tuple[float, ...]
    cka: Matrix
    rows: int
    queries: int

    def conclusions(self) -> list[str]:
        """What the numbers come to, in sentences."""
        first, near = self.names[0], self.names[int(np.nanargmax(self.knn))]
        both = f"{first} is first by LogME" + (
            " and by its nearest neighbours."
            if near == first
            else f", {near} by its nearest neighbours: compare both."
        )
        found = ["LogME and the share of nearest neighbours: higher is better.", both]
        cka = np.where(np.eye(len(self.names), dtype=bool), np.nan, self.cka)
        if np.isfinite(cka).any():
            one, other = np.unravel_index(int(np.nanargmin(cka)), cka.shape)
            found.append(
                f"Least alike: {self.names[one]} and {self.names[other]}, CKA "
                f"{cka[one, other]:.2f} (1: they say the same). They may gain most by fusing; "
                "featcache compare tells whether they do."
            )
        return found if len(self.names) > 1 else found[:1]


def rank(features: Features, k: int = 10, queries: int = 2000, seed: int = 0) -> Ranking:
    """Rank the backbones of the features on training rows.

    Those are all rows but the ones of the test split (of the val split, where there is no test
    split); all rows where the data has no split of its own. Views are left out.

    Parameters
    ----------
    features : Features
    k, queries, seed
        See `knn_accuracy`.

    Raises
    ------
    DataError
        If the training rows have fewer than two classes.
    """
    images = only_images(features)
    own = "test" if (images.split == "test").any() else "val"
    train = images.rows(np.flatnonzero(images.split != own))
    if len(np.unique(train.y)) < 2:
        raise DataError(
            f"{counted(len(train), 'training row')} of {counted(len(np.unique(train.y)), 'class')}",
            "Ranking needs training images of two classes or more.",
        )
    groups = components(train)  # (n,)
    blocks = [train.X[:, part] for part in slices(train.blocks)]
    evidence = [logme(block, train.y) for block in blocks]
    near = [knn_accuracy(block, train.y, groups, k, queries, seed) for block in blocks]
    order = sorted(range(len(blocks)), key=lambda i: -evidence[i])
    return Ranking(
        names=tuple(train.names[i] for i in order),
        widths=tuple(train.blocks[i] for i in order),
        logme=tuple(evidence[i] for i in order),
        knn=tuple(near[i] for i in order),
        cka=cka_matrix([blocks[i] for i in order]),
        rows=len(train),
        queries=min(queries, len(train)),
    )


def logme(X: NDArray[Any], y: NDArray[Any]) -> float:
    """Log of the maximum evidence of a linear model on the features, per row and class.

    For each class c, with targets t = [y = c] in {0, 1}, weights w ~ N(0, I / alpha) and noise
    N(0, 1 / beta): the log of p(t | X, alpha, beta) at the alpha and beta that maximise it, found
    by MacKay's fixed point; divided by n, and the mean over the classes (You et al. 2021, LogME,
    https://arxiv.org/abs/2102.11005, equation 2 and algorithm 1). Unlike the authors' code, columns
    beyond the rank of X are counted where there are more of them than rows.

    Parameters
    ----------
    X : float array of shape (n, d)
        As the backbone gives it: the model has no intercept and no scaling.
    y : array of labels of shape (n,)

    Returns
    -------
    float
        Higher is better.
    """
    X = np.asarray(X, dtype=np.float64)  # (n, d)
    n, d = X.shape
    classes, codes = np.unique(y, return_inverse=True)
    targets = np.eye(len(classes))[codes]  # (n, classes)
    # One eigendecomposition of the smaller Gram matrix serves all classes.
    if d <= n:
        values, vectors = np.linalg.eigh(X.T @ X)  # (d,), (d, d)
        sigma = np.maximum(values, 0.0)
        inside = vectors.T @ (X.T @ targets)  # (d, classes)
        real = sigma > sigma.max() * 1e-12
        squares = inside[real] ** 2 / sigma[real, None]  # (r, classes), along X's left vectors
    else:
        values, vectors = np.linalg.eigh(X @ X.T)  # (n,), (n, n)
        sigma = np.maximum(values, 0.0)
        real = sigma > sigma.max() * 1e-12
        squares = (vectors[:, real].T @ targets) ** 2  # (r, classes)
    whole = (targets**2).sum(axis=0)  # (classes,)
    found = [
        _evidence(sigma[real], squares[:, c], float(whole[c]), n, d) for c in range(len(classes))
    ]
    return float(np.mean(found))


def _evidence(sigma: Matrix, squares: Matrix, whole: float, n: int, d: int) -> float:
    """The largest log evidence of one class, per row.

    `sigma` (r,) are the squared singular values, `squares` (r,) the target's squared components
    along the left singular vectors, `whole` its squared length.
    """
    rest = max(whole - float(squares.sum()), 0.0)  # what no weights can explain
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        gamma = float((sigma / (sigma + ratio)).sum())
        length = float((sigma * squares / (sigma + ratio) ** 2).sum())  # |m|²
        error = rest + float((squares * (ratio / (sigma + ratio)) ** 2).sum())  # |X m - t|²
        alpha = gamma / max(length, 1e-12)
        beta = (n - gamma) / max(error, 1e-12)
        if abs(alpha / beta - ratio) <= _CLOSE * ratio:
            break
    ratio = alpha / beta
    length = float((sigma * squares / (sigma + ratio) ** 2).sum())
    error = rest + float((squares * (ratio / (sigma + ratio)) ** 2).sum())
    log_det = float(np.log(alpha + beta * sigma).sum()) + (d - len(sigma)) * np.log(alpha)
    total = (
        d * np.log(alpha) + n * np.log(beta) - log_det - beta * error - alpha * length
        - n * np.log(2 * np.pi)
    )  # fmt: skip
    return float(total / 2 / n)


def knn_accuracy(
    X: NDArray[Any],
    y: NDArray[Any],
    groups: Rows | None = None,
    k: int = 10,
    queries: int = 2000,
    seed: int = 0,
) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine, each with one vote.

    Equal votes go to the class of the nearest among the tied. Rows that are linked to the one
    asked for (its group, equal images) don't count as its neighbours.

    Parameters
    ----------
    X : float array of shape (n, d)
    y : array of labels of shape (n,)
    groups : int array of shape (n,), default None
        Equal for rows that belong together; None: each row stands alone.
    k : int, default 10
    queries : int, default 2000
        Most rows to look neighbours up for, a random sample; the neighbours are among all rows.
    seed : int, default 0
        Draws the sample.

    Raises
    ------
    RecipeError
        For a `k` or `queries` below 1.
    """
    for name, value in (("k", k), ("queries", queries)):
        if value < 1:
            raise RecipeError(f"{name} is {value!r}", "Give a whole number above 0.")
    n = len(y)
    classes, codes = np.unique(y, return_inverse=True)
    unit = np.ascontiguousarray(unit_rows(np.asarray(X, dtype=np.float32)))  # (n, d)
    group = np.arange(n) if groups is None else np.asarray(groups)
    chosen = np.arange(n)
    if n > queries:
        chosen = np.sort(np.random.default_rng(seed).choice(n, queries, replace=False))
    k = min(k, n - 1)
    right = 0
    for start in range(0, len(chosen), _CHUNK):
        rows = chosen[start : start + _CHUNK]  # (b,)
        near = unit[rows] @ unit.T  # (b, n)
        near[group[rows][:, None] == group] = -np.inf
        best = np.argpartition(-near, k - 1, axis=1)[:, :k]  # (b, k)
        values = np.take_along_axis(near, best, axis=1)  # (b, k)
        by_nearness = np.argsort(-values, axis=1, kind="stable")
        best = np.take_along_axis(best, by_nearness, axis=1)
        votes = np.isfinite(np.take_along_axis(values, by_nearness, axis=1))  # (b, k)
        counts = np.zeros((len(rows), len(classes)))  # (b, classes)
        # A vote is worth a little more the nearer it is: that settles equal counts and no others.
        worth = votes * (1 + 0.5 ** np.arange(1, k + 1) / (2 * k))  # (b, k)
        np.add.at(counts, (np.arange(len(rows))[:, None], codes[best]), worth)
        right += int((counts.argmax(axis=1) == codes[rows]).sum())
    return right / len(chosen)


def linear_cka(X: NDArray[Any], Z: NDArray[Any]) -> float:
    """Linear centred kernel alignment of two backbones' features of the same rows.

    |Zᵀ X|² / (|Xᵀ X| |Zᵀ Z|) in Frobenius norms, with centred columns (Kornblith et al. 2019,
    https://arxiv.org/abs/1905.00414): 1 for features that are equal but for rotation and scale.

    Parameters
    ----------
    X : float array of shape (n, d)
    Z : float array of shape (n, e)

    Returns
    -------
    float
        From 0 to 1; NaN where one of them is constant.
    """
    return float(cka_matrix([X, Z])[0, 1])


def cka_matrix(blocks: list[NDArray[Any]]) -> Matrix:
    """`linear_cka` of every pair: (k, k)."""
    centred = [np.asarray(X, dtype=np.float64) for X in blocks]
    centred = [X - X.mean(axis=0) for X in centred]
    k = len(centred)
    cross = np.zeros((k, k))
    for i in range(k):
        for j in range(i, k):
            cross[i, j] = cross[j, i] = float(((centred[i].T @ centred[j]) ** 2).sum())
    own = np.sqrt(np.diag(cross))  # (k,)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(cross / np.outer(own, own))
