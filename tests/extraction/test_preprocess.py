import json
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torchvision
from noise import noise
from PIL import Image
from torchvision.models import get_model_weights, list_models
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from featcache.errors import RecipeError, UnknownName
from featcache.extraction.preprocess import LARGEST, VIEWS, Preprocess, from_plain
from featcache.extraction.registry import open_backbone

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
