"""Views in the cache: found by their key, loaded as further rows of their images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import SIDE, tiny_backbone, tiny_images

from featcache.errors import CacheMissing, CacheRefused, RecipeError
from featcache.extraction.extract import fill_cache
from featcache.images.manifest import from_arrays
from featcache.store.cache import Cache
from featcache.store.feature_file import NAME, read_trained_on, write_trained_on


def fill(cache, images, views=("none", "hflip"), **options):
    for view in views:
        backbones = [tiny_backbone("a", 5, 0, view=view), tiny_backbone("b", 3, 1, view=view)]
        fill_cache(images, backbone=backbones, cache=cache, **options)


def test_views_are_further_rows_with_every_backbone_s_own_view(cache):
    images = tiny_images(12)
    fill(cache, images, ("none", "hflip", "rot90"))
    store = Cache(cache)
    entries = store.choose("tiny", ["b", "a"])
    plain = store.features(images, entries)
    seen = store.features(images, entries, ["rot90", "hflip"])
    assert len(seen) == 36
    assert seen.view.tolist() == ["none"] * 12 + ["rot90"] * 12 + ["hflip"] * 12
    np.testing.assert_array_equal(seen.X[:12], plain.X)
    assert seen.ids[12:14].tolist() == ["0000.png@rot90", "0001.png@rot90"]
    assert seen.sources.tolist() == plain.ids.tolist() * 3
    for name in ("y", "sha256", "groups", "split"):
        assert getattr(seen, name).tolist() == getattr(plain, name).tolist() * 3
    # The oracle: images that were mirrored before they were extracted at all.
    pixels = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    mirrored = from_arrays(
        "mirrored",
        [one[:, ::-1] for one in pixels],
        ids=images.ids.tolist(),
        labels=images.labels.tolist(),
    )
    fill(cache, mirrored, ("none",))
    oracle = store.features(mirrored, store.choose("mirrored", ["b", "a"]))
    np.testing.assert_allclose(seen.X[24:], oracle.X, atol=1e-6)
    assert not np.allclose(seen.X[24:], plain.X)


def test_a_view_twice_is_one(cache):
    images = tiny_images(6)
    fill(cache, images)
    store = Cache(cache)
    entries = store.choose("tiny")
    assert len(store.features(images, entries, ["hflip", "hflip"])) == 12


def test_views_do_not_stand_for_their_images(cache):
    images = tiny_images(6)
    fill(cache, images)
    chosen = Cache(cache).choose("tiny")
    assert [entry.key.preprocess["view"] for entry in chosen] == ["none", "none"]


def test_an_absent_view_names_the_command(cache):
    images = tiny_images(6)
    fill(cache, images)
    fill_cache(images, backbone=tiny_backbone("a", 5, 0, view="rot90"), cache=cache)
    store = Cache(cache)
    with pytest.raises(CacheMissing, match="view rot90 of b@") as caught:
        store.features(images, store.choose("tiny"), ["rot90"])
    assert "--backbone b --name tiny --weights fixed --image-size 8" in caught.value.remedy
    assert "--view rot90" in caught.value.remedy
    assert f"--cache {cache}" in caught.value.remedy


def test_a_view_of_another_preprocessing_does_not_serve(cache):
    images = tiny_images(6)
    fill_cache(images, backbone=tiny_backbone("a"), cache=cache)
    other = tiny_backbone("a", view="hflip")
    other = replace(other, preprocess=replace(other.preprocess, interpolation="nearest"))
    fill_cache(images, backbone=other, cache=cache)
    store = Cache(cache)
    with pytest.raises(CacheMissing, match="hflip"):
        store.features(images, store.choose("tiny"), ["hflip"])


def test_none_and_views_of_views_are_refused(cache):
    images = tiny_images(6)
    fill(cache, images)
    store = Cache(cache)
    with pytest.raises(RecipeError, match="the image itself"):
        store.features(images, store.choose("tiny"), ["none"])
    view = [e for e in store.entries("tiny") if e.key.preprocess["view"] == "hflip"]
    with pytest.raises(RecipeError, match="holds a view already"):
        store.features(images, view, ["hflip"])


def test_an_image_without_its_view_is_refused(cache):
    images = tiny_images(8)
    fill(cache, tiny_images(6))
    fill(cache, images, ("none",))
    store = Cache(cache)
    with pytest.raises(CacheRefused, match="2 of 8 images") as caught:
        store.features(images, store.choose("tiny"), ["hflip"])
    assert "--view hflip" in caught.value.remedy


def test_trained_on_goes_from_file_to_features(cache):
    images = tiny_images(6)
    fill(cache, images, ("none",))
    store = Cache(cache)
    a, b = store.choose("tiny", ["a", "b"])
    assert store.features(images, [a, b]).trained_on == ()
    write_trained_on(b.path, images.sha256[:4])
    write_trained_on(b.path, images.sha256[:2].tolist() * 2)
    assert read_trained_on(a.path) == frozenset()
    loaded = store.features(images, [a, b])
    assert loaded.trained_on == (frozenset(), frozenset(images.sha256[:2].tolist()))
    assert loaded.select(["b"]).trained_on == loaded.trained_on[1:]
    assert loaded.select(["a"]).trained_on == (frozenset(),)


def test_a_strange_trained_on_is_refused(cache):
    import h5py

    fill(cache, tiny_images(6), ("none",))
    (entry, _) = Cache(cache).choose("tiny")
    with h5py.File(entry.path, "r+") as file:
        file.create_dataset(NAME, data=np.zeros(5))
    with pytest.raises(CacheRefused, match="trained_on"):
        read_trained_on(entry.path)
