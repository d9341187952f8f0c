"""Colour spaces, against the standard library and known values."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from noise import noise

from featcache.extraction.preprocess import COLOURS, Preprocess, recoloured

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
