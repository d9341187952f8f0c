"""Small synthetic features with a signal in every block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featcache.store.features import Features


def make_features(
    n=120,
    blocks=(6, 4),
    classes=("cat", "dog", "owl"),
    seed=0,
    signal=3.0,
    groups=None,
    split=None,
    sha256=None,
):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % len(classes)
    centres = rng.normal(size=(len(classes), sum(blocks))) * signal
    X = (centres[codes] + rng.normal(size=(n, sum(blocks)))).astype(np.float32)
    empty = np.full(n, "")
    return Features(
        X=X,
        y=np.array(classes)[codes],
        ids=np.array([f"img{i:04d}.png" for i in range(n)]),
        sha256=np.array([f"{i:064x}" for i in range(n)]) if sha256 is None else np.array(sha256),
        groups=empty if groups is None else np.array(groups),
        split=empty if split is None else np.array(split),
        blocks=tuple(blocks),
        names=tuple(f"net{i}" for i in range(len(blocks))),
        keys=tuple(f"key{i}" for i in range(len(blocks))),
        data="toy",
    )


def add_views(features: Features, *views: str) -> Features:
    """The features with views whose vectors are a little off those of their images."""
    n, k = len(features), len(views) + 1
    rng = np.random.default_rng(1)
    X = np.tile(features.X, (k, 1))
    X[n:] += rng.normal(scale=0.1, size=X[n:].shape).astype(np.float32)
    return replace(
        features,
        X=X,
        ids=np.concatenate([features.ids, *(np.char.add(features.ids, f"@{v}") for v in views)]),
        view=np.repeat(["none", *views], n),
        **{
            name: np.tile(getattr(features, name), k) for name in ("y", "sha256", "groups", "split")
        },
    )


@pytest.fixture
def features():
    return make_features()
