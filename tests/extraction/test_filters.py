"""Filters of the whole image, against scipy and Pillow called by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from noise import noise
from PIL import Image
from scipy import ndimage
from tiny import tiny_images

from featcache.errors import RecipeError, UnknownName
from featcache.extraction.loader import Loading, load_batches
from featcache.extraction.preprocess import (
    FILTERS,
    VIEWS,
    WITH_SIGMA,
    Preprocess,
    check_filters,
    filtered,
)
from featcache.hashing import sha256_bytes
from featcache.images.decode import decode
from featcache.images.manifest import Images, from_arrays, strings

EVERY = ("equalise", "gaussian-1", "log-1.5")


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float64)


def test_every_filter_is_tested() -> None:
    assert {name.partition("-")[0] for name in EVERY} == {*FILTERS, *WITH_SIGMA}


def test_gaussian_smooths_each_channel_by_itself() -> None:
    image = noise(0, 31, 20)
    expected = ndimage.gaussian_filter(array(image), (1.5, 1.5, 0))
    assert np.abs(array(filtered(image, ["gaussian-1.5"])) - expected).max() <= 0.51


def test_log_is_scale_normalised_about_middle_grey() -> None:
    image = noise(1, 31, 20)
    planes = np.moveaxis(array(image), 2, 0)
    expected = np.stack([ndimage.gaussian_laplace(p, 2.0) * 4 + 128 for p in planes], axis=-1)
    assert np.abs(array(filtered(image, ["log-2"])) - expected.clip(0, 255)).max() <= 0.51
    flat = Image.new("RGB", (9, 9), (7, 100, 255))
    assert set(np.unique(np.asarray(filtered(flat, ["log-2"])))) == {128}


def test_log_answers_alike_to_like_structures_of_any_size() -> None:
    y, x = np.mgrid[:97, :97] - 48
    for sigma in (1.5, 3.0, 6.0):
        spot = 128 + 100 * np.exp(-(x**2 + y**2) / (2 * sigma**2))
        image = Image.fromarray(np.rint(spot).astype(np.uint8)).convert("RGB")
        centre = np.asarray(filtered(image, [f"log-{sigma:g}"]))[48, 48, 0]
        assert abs(int(centre) - 78) <= 3  # a spot of that width: half its height below 128


def test_equalise_spreads_the_luminance_and_keeps_grey_grey() -> None:
    ramp = np.tile(np.linspace(100, 140, 64).astype(np.uint8)[:, None], (1, 64))
    image = Image.fromarray(ramp).convert("RGB")
    done = np.asarray(filtered(image, ["equalise"]))
    assert (done.min(), done.max()) == (0, 255)
    assert np.array_equal(done[..., 0], done[..., 2])
    flat = Image.new("RGB", (5, 5), (90, 90, 90))
    assert np.array_equal(np.asarray(filtered(flat, ["equalise"])), np.asarray(flat))


def test_order_is_as_written_and_none_is_none() -> None:
    image = noise(2, 24, 24)
    one_way = array(filtered(image, ["equalise", "gaussian-1"]))
    assert not np.array_equal(one_way, array(filtered(image, ["gaussian-1", "equalise"])))
    by_hand = filtered(filtered(image, ["equalise"]), ["gaussian-1"])
    assert np.array_equal(one_way, array(by_hand))
    assert filtered(image, ()) is image


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_images_smaller_than_a_filter(size: tuple[int, int]) -> None:
    for name in (*EVERY, "gaussian-100"):
        assert filtered(noise(3, *size), [name]).size == size


@pytest.mark.parametrize(
    ("filters", "kind", "message"),
    [
        (("equalize",), UnknownName, "Did you mean equalise"),
        (("none", "log-1"), UnknownName, "unknown filter 'none'"),
        (("gaussian",), RecipeError, "needs a width"),
        (("gaussian-0",), RecipeError, "needs a width"),
        (("gaussian--1",), RecipeError, "needs a width"),
        (("log-nan",), RecipeError, "needs a width"),
        (("log-inf",), RecipeError, "needs a width"),
        (("log-1e9",), RecipeError, "needs a width"),
        (("log-x",), RecipeError, "needs a width"),
        (("equalise-2",), RecipeError, "has no width"),
        (("log-1.50",), RecipeError, "log-1.5"),
        (("",), UnknownName, "unknown filter ''"),
    ],
)
def test_what_is_no_filter_is_refused(filters, kind, message) -> None:
    for refuse in (check_filters, lambda f: Preprocess(filters=f)):
        with pytest.raises(kind, match=message):
            refuse(filters)


@pytest.mark.parametrize("view", VIEWS)
def test_filters_come_after_the_view_and_before_resizing(view: str) -> None:
    image = noise(4, 90, 61)
    plain = Preprocess(resize=40, crop=32)
    both = Preprocess(resize=40, crop=32, view=view, filters=EVERY)
    by_hand = plain.cut(filtered(VIEWS[view](image), EVERY))
    assert np.array_equal(both.cut(image), by_hand)


@pytest.mark.parametrize("filters", [("equalise",), ("gaussian-1",), ("log-1.5",), EVERY])
@pytest.mark.parametrize("colour", ["RGB", "HSV", "grey"])
def test_a_row_is_the_same_alone_and_in_a_batch(filters, colour) -> None:
    """Small square images are resized together, others one by one."""
    rng = np.random.default_rng(0)
    sides = [(8, 8), (32, 32), (5, 7), (32, 32), (1, 1), (64, 64)]
    arrays = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sides]
    ids = [f"{i}.png" for i in range(len(sides))]
    images = from_arrays("sizes", arrays, ids=ids, labels=["a"] * len(sides))
    one = Preprocess(resize=64, crop=56, view="rot90", filters=filters, colour=colour)
    (batch,) = load_batches(images, np.arange(len(sides)), [one, Preprocess()], 16, Loading(2))
    for found, pixels in zip(batch.pixels[one], arrays, strict=True):
        assert np.array_equal(found, one.cut(Image.fromarray(pixels)))


def test_a_large_jpeg_is_filtered_whole_whoever_shares_its_decoding() -> None:
    """Decoded at a part of its size, a width in pixels would mean another structure."""
    data = io.BytesIO()
    noise(5, 1200, 900).save(data, "JPEG")
    content = data.getvalue()
    one = strings(["a"])
    images = Images("large", strings(["a.jpg"]), strings([sha256_bytes(content)]), one, one,
                    strings([""]), read=lambda row: content)  # fmt: skip
    sharp = Preprocess(resize=32, crop=32)
    soft = Preprocess(resize=32, crop=32, filters=("gaussian-3",))
    assert (sharp.at_least, soft.at_least) == (128, 0)
    (batch,) = load_batches(images, np.arange(1), [sharp, soft], 4, Loading(1))
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(batch.pixels[soft][0], soft.cut(whole))
    assert np.array_equal(batch.pixels[sharp][0], sharp.cut(decode(content, at_least=128)))
    assert not np.array_equal(decode(content, at_least=128).size, whole.size)


def test_filtered_and_plain_pixels_come_of_one_reading() -> None:
    images = tiny_images(4)
    plain, log = Preprocess(resize=8, crop=8), Preprocess(resize=8, crop=8, filters=("log-1",))
    (batch,) = load_batches(images, np.arange(4), [plain, log], 4, Loading(1))
    assert not np.array_equal(batch.pixels[plain], batch.pixels[log])
