"""What a device resizes against what Pillow resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noise import noise
from PIL import Image

from featcache.extraction import resizing
from featcache.extraction.preprocess import COLOURS, VIEWS, Preprocess

SIZES = [(500, 375), (375, 500), (32, 32), (224, 224), (97, 203), (30, 590), (256, 256), (1, 1)]


def side_by_side(pictures: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in one array of the largest sides; what lies beside them is noise."""
    height, width = max(p.height for p in pictures), max(p.width for p in pictures)
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (len(pictures), height, width, 3), dtype=np.uint8)
    for place, picture in enumerate(pictures):
        array[place, : picture.height, : picture.width] = np.asarray(picture)
    return torch.from_numpy(array), torch.tensor([(p.height, p.width) for p in pictures])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_a_pixel_is_at_most_a_level_off_and_hardly_any_is(interpolation: str, view: str) -> None:
    preprocess = Preprocess(interpolation=interpolation, view=view)
    pictures = [noise(i, *size) for i, size in enumerate(SIZES)]
    found = resizing.cut(*side_by_side(pictures), preprocess).numpy().astype(np.int16)
    expected = np.stack([preprocess.cut(picture) for picture in pictures])
    off = np.abs(found - expected)
    assert off.max() <= (1 if interpolation == "bilinear" else 2)
    assert (off > 0).mean() < 0.005


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_pillows_own(colour: str) -> None:
    preprocess = Preprocess(resize=64, crop=56, colour=colour)
    picture = noise(3, 16, 16)  # doubled twice: all pixels are exact
    found = resizing.cut(*side_by_side([picture]), preprocess)
    assert np.array_equal(found[0].numpy(), preprocess.cut(picture))


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128, 256])
def test_where_sides_double_all_bits_are_the_same(side: int) -> None:
    preprocess = Preprocess()
    picture = noise(1, side, side)
    found = resizing.cut(*side_by_side([picture]), preprocess)
    assert np.array_equal(found[0].numpy(), preprocess.cut(picture))


def test_an_image_does_not_depend_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess(interpolation="bicubic")
    pictures = [noise(i, *size) for i, size in enumerate(SIZES)]
    together = resizing.cut(*side_by_side(pictures), preprocess)
    monkeypatch.setattr(resizing, "_AT_ONCE", 1)  # one at a time
    assert torch.equal(resizing.cut(*side_by_side(pictures), preprocess), together)
    for picture, same in zip(pictures, together, strict=True):
        assert torch.equal(resizing.cut(*side_by_side([picture]), preprocess)[0], same)


def test_one_size_can_stand_for_all() -> None:
    preprocess = Preprocess(view="rot90")
    images, sizes = side_by_side([noise(i, 60, 90) for i in range(5)])
    alone = resizing.cut(images, sizes[:1], preprocess)
    assert torch.equal(alone, resizing.cut(images, sizes, preprocess))


def test_products_that_may_be_rounded_are_taken_in_float64() -> None:
    preprocess = Preprocess()
    images = side_by_side([noise(0, 300, 200)])
    exact = resizing.cut(*images, preprocess)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(resizing.cut(*images, preprocess), exact)
    finally:
        torch.set_float32_matmul_precision(before)


def test_every_sum_of_products_is_a_whole_number_that_float32_holds() -> None:
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        preprocess = Preprocess(interpolation=interpolation)
        for length in (1, 31, 255, 257, 640, 4000):
            one = torch.tensor([float(length)], dtype=torch.float64)
            resized = torch.tensor([256.0], dtype=torch.float64)
            weights = resizing._weights(one, resized, one * 0, length, False, preprocess)
            weights = weights * 2**15
            assert (weights == weights.round()).all()
            assert (weights.sum(-1) == 2**15).all()
            assert float(weights.abs().sum(-1).max()) * 255 + 2**14 < 2**24


def test_what_is_left_to_pillow() -> None:
    assert not resizing.resizes(Preprocess(filters=("equalise",)))
    assert not resizing.resizes(Preprocess(interpolation="nearest"))
    assert resizing.takes(2000, 2000)
    assert not resizing.takes(4000, 3000)
    assert not resizing.takes(10, 201)
