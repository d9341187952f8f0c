from __future__ import annotations

import colorsys
import io
import json
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torchvision
from noise import noise
from PIL import Image
from scipy import ndimage
from tiny import tiny_images
from torchvision.models import get_model_weights, list_models
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from featcache.errors import RecipeError, UnknownName
from featcache.extraction.loader import Loading, load_batches
from featcache.extraction.preprocess import (
    COLOURS,
    FILTERS,
    LARGEST,
    VIEWS,
    WITH_SIGMA,
    Preprocess,
    check_filters,
    filtered,
    from_plain,
    recoloured,
)
from featcache.extraction.registry import open_backbone
from featcache.hashing import sha256_bytes
from featcache.images.decode import decode
from featcache.images.manifest import Images, from_arrays, strings

SIZES = [(48, 40), (40, 48), (224, 224), (225, 224), (1, 1), (1, 20), (333, 77), (500, 375),
         (37, 700), (255, 256), (3, 2), (1000, 51)]  # fmt: skip


def torchvisions(preprocess):
    """torchvision's own preset with the same numbers."""
    return ImageClassification(
        resize_size=preprocess.resize,
        crop_size=preprocess.crop,
        interpolation=InterpolationMode(preprocess.interpolation),
        mean=preprocess.mean,
        std=preprocess.std,
    )


def ours(preprocess, image):
    return preprocess.normalise(torch.from_numpy(preprocess.cut(image).copy())[None])[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess(resize=232),
        Preprocess(resize=342, crop=299, interpolation="bicubic"),
        Preprocess(resize=37, crop=32),
        Preprocess(resize=64, crop=64, interpolation="nearest"),
        Preprocess(resize=33, crop=32, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
    ],
    ids=lambda p: f"{p.resize}-{p.crop}-{p.interpolation}",
)
def test_equals_torchvision_to_the_bit(preprocess, size):
    image = noise(1, *size)
    theirs = torchvisions(preprocess)(image)
    assert torch.equal(ours(preprocess, image), theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "googlenet", "inception_v3",
                                  "efficientnet_b3", "efficientnet_v2_s", "vit_b_16", "swin_v2_t",
                                  "convnext_tiny", "regnet_y_16gf", "mnasnet0_75"])  # fmt: skip
def test_each_weights_own_transforms_are_applied(name):
    backbone = open_backbone(name, weights="random")
    image = noise(2, 300, 231)
    theirs = get_model_weights(name).DEFAULT.transforms()(image)
    assert torch.equal(ours(backbone.preprocess, image), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_every_weights_own_transforms_are_applied(name):
    test_each_weights_own_transforms_are_applied(name)


def test_a_long_strip_costs_little_and_shows_its_middle():
    strip = Image.new("RGB", (1, 5000))
    for y in range(5000):
        strip.putpixel((0, y), (y % 256, y // 256, 7))
    preprocess = Preprocess()
    tracemalloc.start()
    got = preprocess.cut(strip)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.shape == (3, 224, 224)
    assert peak < 5e6
    # Resized by 256, the crop of 224 rows shows the pixel at the very middle and little more.
    assert set(np.unique(got[1])) <= {9, 10}


def test_a_long_strip_is_never_resized_whole(monkeypatch):
    seen = []
    plain = Image.Image.resize

    def spy(self, size, *args, **options):
        seen.append(size)
        return plain(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    for size in [(1, 5000), (5000, 1), (3, 100_000)]:
        Preprocess().cut(Image.new("RGB", size))
    assert max(width * height for width, height in seen) <= 256 * 256 * 21


@pytest.mark.parametrize(
    ("view", "turn"),
    [
        ("none", lambda a: a),
        ("hflip", lambda a: a[:, ::-1]),
        ("vflip", lambda a: a[::-1]),
        ("rot90", lambda a: np.rot90(a, 1)),
        ("rot180", lambda a: np.rot90(a, 2)),
        ("rot270", lambda a: np.rot90(a, 3)),
    ],
)
def test_views_turn_the_image_before_it_is_cut(view, turn):
    image = noise(3, 90, 61)
    turned = Image.fromarray(np.ascontiguousarray(turn(np.asarray(image))))
    preprocess = Preprocess(resize=40, crop=32)
    np.testing.assert_array_equal(replace(preprocess, view=view).cut(image), preprocess.cut(turned))


def test_every_view_is_tested():
    assert set(VIEWS) == {"none", "hflip", "vflip", "rot90", "rot180", "rot270"}


def test_another_size_keeps_the_margin():
    assert Preprocess().at(None) == Preprocess()
    small = Preprocess().at(32)
    assert (small.crop, small.resize) == (32, 37)
    for size in range(1, 400):
        assert Preprocess(resize=232).at(size).resize >= size
    for size in (0, LARGEST + 1):
        with pytest.raises(RecipeError, match=f"image size {size} is not between"):
            Preprocess().at(size)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"crop": 0}, RecipeError, "crop 0"),
        ({"crop": 300}, RecipeError, "crop 300 must be between 1 and resize 256"),
        ({"view": "flip"}, UnknownName, "Did you mean"),
        ({"interpolation": "cubic"}, UnknownName, "bicubic"),
        ({"colour": "L"}, UnknownName, "unknown colour 'L'"),
        ({"antialias": False}, RecipeError, "antialias"),
        ({"decode": 0}, RecipeError, "decode policy"),
    ],
)
def test_settings_that_are_not_there_are_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        Preprocess(**change)


def test_plain_is_the_whole_of_it_as_json_and_leads_back():
    plain = Preprocess(filters=("equalise",)).plain()
    assert set(plain) == {field.name for field in fields(Preprocess)}
    assert plain["mean"] == [0.485, 0.456, 0.406]
    for one in (Preprocess(), Preprocess(colour="HSV", filters=("equalise", "log-1.5"))):
        assert from_plain(json.loads(json.dumps(one.plain()))) == one


def test_options_in_words():
    plain = Preprocess(mean=(0.5,) * 3)
    assert plain.changed() == plain.changed("rgb", "none", "own") == plain
    changed = plain.changed(colour="ycbcr", filter="equalise+log-1.50", scale="0-1")
    assert (changed.colour, changed.filters) == ("YCbCr", ("equalise", "log-1.5"))
    assert (changed.mean, changed.std) == ((0.0,) * 3, (1.0,) * 3)
    assert changed.changed(colour="RGB", filter="none").filters == ()


def test_equal_ones_are_one_key_of_a_dict():
    assert {Preprocess(): 1}[Preprocess()] == 1


# Colour spaces, against the standard library and known values.

# RGB, and what it is in each space.
KNOWN = {
    "LAB": [((0, 0, 0), (0, 128, 128)), ((255, 255, 255), (255, 128, 128)),
            ((128, 128, 128), (137, 128, 128)), ((255, 0, 0), (138, 209, 198))],
    "YCbCr": [((0, 0, 0), (0, 128, 128)), ((255, 255, 255), (255, 128, 128)),
              ((255, 0, 0), (76, 85, 255))],
    "grey": [((255, 0, 0), (76, 76, 76)), ((0, 255, 0), (150, 150, 150)),
             ((9, 9, 9), (9, 9, 9))],
}  # fmt: skip


@pytest.mark.parametrize("colour", KNOWN)
def test_known_values(colour: str) -> None:
    for rgb, expected in KNOWN[colour]:
        pixels = np.array(rgb, np.uint8).reshape(3, 1, 1)
        found = recoloured(pixels, colour).reshape(3).astype(int)
        assert np.abs(found - expected).max() <= 1, (rgb, found)


def test_hsv_is_that_of_the_standard_library() -> None:
    pixels = np.asarray(noise(0, 7, 5)).transpose(2, 0, 1)
    found = recoloured(pixels, "HSV").astype(float)
    for y in range(5):
        for x in range(7):
            expected = np.array(colorsys.rgb_to_hsv(*(pixels[:, y, x] / 255))) * 255
            off = np.abs(found[:, y, x] - expected)
            off[0] = min(off[0], 256 - off[0])  # hues go round
            assert off.max() <= 1.01


@pytest.mark.parametrize("colour", COLOURS)
def test_several_images_are_as_each_alone(colour: str) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 9), dtype=np.uint8)
    found = recoloured(batch, colour)
    assert found.shape == batch.shape
    assert found.dtype == np.uint8
    for one, whole in zip(batch, found, strict=True):
        assert np.array_equal(recoloured(one, colour), whole)
    assert recoloured(batch[:0], colour).shape == (0, 3, 6, 9)


def test_colour_is_changed_after_resizing_since_hues_have_no_mean() -> None:
    """Between two reds of hue 0 and 255 there is red, not cyan."""
    image = noise(1, 64, 64)
    hsv = Preprocess(resize=32, crop=32, colour="HSV")
    rgb = Preprocess(resize=32, crop=32)
    assert np.array_equal(hsv.cut(image), recoloured(rgb.cut(image), "HSV"))


# Filters of the whole image, against scipy and Pillow called by hand.

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
