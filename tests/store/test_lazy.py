"""Vectors that stay in their files read as the same numbers that are loaded."""

from __future__ import annotations

import os
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import blobs, reseal, store

from featcache.errors import CacheRefused, FeatcacheError
from featcache.fitting.out_of_core import Stream
from featcache.store import lazy as module


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Features of two backbones, 70 images and a view of each: in memory, and on disk."""
    X, y = blobs(70)
    cache, images = store(tmp_path_factory.mktemp("c"), X, y, (6, 4), "float16", views=("hflip",))
    entries = cache.choose("toy")
    return (
        cache.features(images, entries, ["hflip"]),
        cache.features(images, entries, ["hflip"], lazy=True),
    )


def test_the_same_numbers_in_the_same_order(both):
    loaded, lazy = both
    assert lazy.X.shape == loaded.X.shape == (140, 10)
    assert (len(lazy.X), lazy.X.ndim, lazy.X.dtype) == (140, 2, np.float32)
    assert lazy.X.nbytes == loaded.X.nbytes
    np.testing.assert_array_equal(lazy.X[:], loaded.X)
    for name in ("y", "ids", "sha256", "groups", "split", "view", "blocks", "names", "keys"):
        assert np.array_equal(getattr(lazy, name), getattr(loaded, name)), name


@settings(max_examples=60)
@given(st.lists(st.integers(-140, 139), max_size=60), st.integers(1, 200))
def test_any_rows_in_any_order_and_twice(both, rows, piece):
    loaded, lazy = both
    index = np.array(rows, np.intp)
    before = module._GAP, module._PIECE
    module._GAP, module._PIECE = piece // 2, piece  # bytes: every way of cutting into reads
    try:
        np.testing.assert_array_equal(lazy.X[index], loaded.X[index])
        np.testing.assert_array_equal(lazy.X.take(index)[:], loaded.X[index])
    finally:
        module._GAP, module._PIECE = before


def test_slices_masks_single_rows_and_columns(both):
    loaded, lazy = both
    mask = loaded.y == "class1"
    np.testing.assert_array_equal(lazy.X[3], loaded.X[3])
    np.testing.assert_array_equal(lazy.X[-5:], loaded.X[-5:])
    np.testing.assert_array_equal(lazy.X[mask], loaded.X[mask])
    for columns in (slice(2, 8), slice(6, 10), slice(0, 0), np.array([9, 3, 4, 5, 0])):
        part = lazy.X[:, columns]
        assert part.shape == loaded.X[:, columns].shape
        np.testing.assert_array_equal(part[4:9], loaded.X[4:9][:, columns])
    np.testing.assert_array_equal(lazy.X[7, 2:8], loaded.X[7, 2:8])
    np.testing.assert_array_equal(lazy.X[:, 2:9][:, 1:3][:], loaded.X[:, 3:5])
    blocks = [block for _, block in Stream(lazy.X).pieces(np.arange(10)[::-1], 4)]
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), loaded.X[:10][::-1])


def test_features_select_and_rows_read_nothing(both, monkeypatch):
    loaded, lazy = both
    monkeypatch.setattr(module._Block, "read", lambda *_: pytest.fail("read"))
    chosen = lazy.select(["net1", "net0"]).rows(np.arange(5))
    monkeypatch.undo()
    np.testing.assert_array_equal(chosen.X[:], loaded.select(["net1", "net0"]).rows(np.arange(5)).X)
    assert lazy.digest() == loaded.digest()


def test_the_order_of_the_disk(both):
    _, lazy = both
    X = lazy.X.take(np.arange(0, 140, 3))
    order = X.file_order()
    assert sorted(order.tolist()) == list(range(len(X)))
    where = X._blocks[0].where[X._index]
    assert (np.diff(where[order]) > 0).all()


def test_it_is_no_array(both):
    _, lazy = both
    with pytest.raises(FeatcacheError, match="stays on disk"):
        np.asarray(lazy.X)


def test_it_travels_to_other_processes(both):
    loaded, lazy = both
    assert len(pickle.dumps(lazy.X)) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy.X))[20:30], loaded.X[20:30])


def test_images_without_a_vector_are_left_out(tmp_path):
    X, y = blobs(40)
    cache, images = store(tmp_path, X, y, (6, 4), absent=(0, 7, 39))
    lazy = cache.features(images, cache.choose("toy"), lazy=True)
    rows = np.setdiff1d(np.arange(40), [0, 7, 39])
    assert lazy.ids.tolist() == images.ids[rows].tolist()
    np.testing.assert_array_equal(lazy.X[:], X[rows])


def features_of(tmp_path):
    X, y = blobs(50)
    cache, images = store(tmp_path, X, y, (10,))
    return cache.choose("toy")[0].path, cache.features(images, cache.choose("toy"), lazy=True)


def test_another_file_under_the_name_is_not_read(tmp_path):
    path, lazy = features_of(tmp_path)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    with pytest.raises(CacheRefused, match="changed while it was read"):
        lazy.X[:3]


def test_a_file_cut_short_or_gone_is_refused(tmp_path, monkeypatch):
    path, lazy = features_of(tmp_path)
    monkeypatch.setattr(module, "_identity", lambda _: lazy.X._blocks[0].files[0].identity)
    os.truncate(path, lazy.X._blocks[0].files[0].offset + 100)
    with pytest.raises(CacheRefused, match="cut short"):
        lazy.X[:]
    path.unlink()
    with pytest.raises(CacheRefused, match="can't be read: No such file"):
        lazy.X[:]


def test_vectors_in_pieces_are_refused(tmp_path):
    X, y = blobs(50)
    cache, images = store(tmp_path, X, y, (10,))
    entries = cache.choose("toy")
    with h5py.File(entries[0].path, "r+") as file:
        values = file["features"][...]
        del file["features"]
        file.create_dataset("features", data=values, chunks=(5, 10))
    for lazy in (True, False):
        with pytest.raises(CacheRefused, match="packed, or in pieces"):
            cache.features(images, entries, lazy=lazy)


def test_nan_comes_as_it_is(tmp_path):
    X, y = blobs(50)
    cache, images = store(tmp_path, X, y, (10,))
    path = cache.choose("toy")[0].path
    with h5py.File(path, "r+") as file:
        file["features"][3, 2] = np.nan
    reseal(path)
    lazy = cache.features(images, cache.choose("toy"), lazy=True)
    assert np.isnan(lazy.X[:]).sum() == 1
