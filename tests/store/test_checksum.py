"""Damaged rows are found while features are loaded, named, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import blobs, store

from featcache.errors import CacheRefused
from featcache.store import feature_file as module
from featcache.store.feature_file import checksums, damaged_rows


def rows(n: int, width: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * 1000 + width)
    digests = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    features = rng.standard_normal((n, width)).astype(dtype)
    return digests, features, checksums(digests, features)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 2500), st.integers(1, 9), st.sampled_from(["float32", "float16"]),
    st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), max_size=3),
)  # fmt: skip
def test_flipped_bits_are_found_where_they_are(
    n: int, width: int, dtype: str, flips: list[tuple[float, int]]
) -> None:
    digests, features, stored = rows(n, width, dtype)
    content = features.view(np.uint8).reshape(-1)
    for where, bit in flips:
        content[int(where * len(content))] ^= 1 << bit
    expected = np.flatnonzero(checksums(digests, features) != stored)
    assert damaged_rows(digests, features, stored).tolist() == expected.tolist()


def _swap(i: int, j: int) -> Callable[[np.ndarray], None]:
    def swap(values: np.ndarray) -> None:
        values[[i, j]] = values[[j, i]]

    return swap


def _flip(which: slice) -> Callable[[np.ndarray], None]:
    def flip(values: np.ndarray) -> None:
        values.view(np.uint32)[which, 3] ^= 1 << 20

    return flip


@pytest.mark.parametrize(
    "damage",
    [_swap(0, 1), _swap(0, 33), _swap(5, 1998), _swap(40, 41), _flip(slice(0, 2)),
     _flip(slice(0, 100, 33)), _flip(slice(None)), _flip(slice(None, None, 2)),
     _flip(slice(None, None, 4)), _flip(slice(3, None, 8)),
     lambda values: values[100:200].fill(0), lambda values: values[:].fill(0),
     lambda values: values.__setitem__(slice(None), values[::-1].copy())],
)  # fmt: skip
def test_damage_that_sums_could_hide_is_found(damage: Callable[[np.ndarray], None]) -> None:
    digests, features, stored = rows(2000, 8, "float32")
    damage(features)
    expected = np.flatnonzero(checksums(digests, features) != stored)
    assert len(expected) > 1
    assert damaged_rows(digests, features, stored).tolist() == expected.tolist()


def test_another_digest_or_checksum_is_damage_too() -> None:
    digests, features, stored = rows(100, 8, "float32")
    digests[7, 30] ^= 1
    stored[50] += 1
    assert damaged_rows(digests, features, stored).tolist() == [7, 50]


def test_of_whole_rows_only_the_sums_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    digests, features, stored = rows(10_000, 8, "float32")
    seen = []

    def count(digests: np.ndarray, features: np.ndarray) -> np.ndarray:
        seen.append(len(features))
        return checksums(digests, features)

    monkeypatch.setattr(module, "checksums", count)
    assert not len(damaged_rows(digests, features, stored))
    assert sum(seen) < 0.1 * len(features)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_damaged_row_is_named_with_its_image_and_refused(tmp_path: Path, lazy: bool) -> None:
    X, y = blobs(60)
    cache, images = store(tmp_path, X, y, (6, 4), "float16", views=("hflip",))
    entry = cache.choose("toy", ["net1"])[0]
    with h5py.File(entry.path, "r+") as file:
        sha256 = file["sha256"][17].tobytes().hex()
        offset = file["features"].id.get_offset() + (17 * 4 + 2) * 2
    content = bytearray(entry.path.read_bytes())
    content[offset] ^= 4
    entry.path.write_bytes(content)
    damaged = int(np.flatnonzero(images.sha256 == sha256)[0])

    with pytest.raises(CacheRefused) as caught:
        _ = cache.features(images, cache.choose("toy"), ["hflip"], lazy=lazy).X[:]
    assert f"{entry.path} is damaged: 1 row " in caught.value.problem
    assert f"(row 17: {images.ids[damaged]})" in caught.value.problem
    assert caught.value.remedy.startswith(
        f"featcache cache verify --repair --data toy --cache {tmp_path}\nfeatcache extract "
    )
    others = cache.features(images, cache.choose("toy", ["net0"]), lazy=lazy)
    assert len(others.X[:]) == 60
    if lazy:  # rows that are not asked for are none of a reader's business
        some = cache.features(images, cache.choose("toy"), lazy=True)
        assert some.X[np.delete(np.arange(60), damaged)].shape == (59, 10)
