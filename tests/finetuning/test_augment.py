from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from featcache.finetuning.augment import Draws, crop_batch, crop_one, draw, jitter, mixer
from featcache.finetuning.options import Options


def _images(n: int = 5, height: int = 12, width: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def _draws(n: int, height: int, width: int, seed: int = 0, **options: object) -> Draws:
    sizes = torch.tensor([[height, width]]).expand(n, 2)
    return draw(sizes, Options(**options), torch.Generator().manual_seed(seed))


def test_crops_of_a_batch_are_torchvisions() -> None:
    images = _images()
    draws = _draws(5, 12, 9, crop_scale=0.1)
    found = crop_batch(images, draws, 16)
    for image, box, flip, one in zip(images, draws.box, draws.flip, found, strict=True):
        top, left, h, w = box.tolist()
        expected = transforms.resized_crop(
            image.float() / 255, top, left, h, w, [16, 16], antialias=False
        )
        expected = transforms.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)
    assert draws.flip.any()
    assert not draws.flip.all()


def test_one_crop_is_the_batchs_up_to_rounding() -> None:
    # uint8 is rounded after each of the two directions.
    images, draws = _images(), _draws(5, 12, 9, crop_scale=0.1)
    batch = crop_batch(images, draws, 16)
    for i in range(5):
        one = crop_one(images[i], draws.box[i], draws.flip[i], 16).float() / 255
        torch.testing.assert_close(one, batch[i], atol=1.6 / 255, rtol=0)


def test_boxes_lie_inside_and_have_the_scale_asked_for() -> None:
    draws = _draws(2000, 40, 60, crop_scale=0.3)
    top, left, h, w = draws.box.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 40).all()
    assert (left + w <= 60).all()
    share = (h * w).double() / 2400
    assert 0.27 < share.min() < 0.33
    assert 0.85 < share.max() < 40 * 53.4 / 2400  # no ratio above 4/3
    # torchvision's own draws have the same mean area.
    torch.manual_seed(0)
    theirs = [
        v2.RandomResizedCrop(8, scale=(0.3, 1)).make_params([torch.zeros(3, 40, 60)])
        for _ in range(2000)
    ]
    area = np.mean([one["height"] * one["width"] for one in theirs]) / 2400
    assert float(share.mean()) == pytest.approx(area, abs=0.02)


def test_an_image_too_long_for_any_ratio_is_cut_in_the_middle() -> None:
    draws = _draws(3, 10, 400, crop_scale=0.9)
    assert draws.box.tolist() == [[0, 193, 10, 13]] * 3


def test_draws_of_an_image_do_not_depend_on_the_batch() -> None:
    draws = _draws(8, 12, 9)
    some = draws[torch.tensor([5, 2])]
    assert torch.equal(some.box, draws.box[[5, 2]])
    assert torch.equal(some.colour, draws.colour[[5, 2]])


def test_jitter_is_torchvisions() -> None:
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    colour = torch.tensor([[1.3, 0.7, 1.2], [0.6, 1.4, 0.2], [1, 1, 1], [2, 2, 2]])
    for image, (brightness, contrast, saturation), found in zip(
        images, colour.tolist(), jitter(images, colour), strict=True
    ):
        expected = transforms.adjust_brightness(image, brightness)
        expected = transforms.adjust_contrast(expected, contrast)
        expected = transforms.adjust_saturation(expected, saturation)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    draws = _draws(6, 9, 9, flip=False, jitter=0.0)
    assert not draws.flip.any()
    assert torch.equal(draws.colour, torch.ones(6, 3))


@pytest.mark.parametrize("kinds", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_keeps_shapes_and_the_labels_mass(kinds: tuple[float, float]) -> None:
    mix = mixer(*kinds, classes=3)
    assert mix is not None
    x, y = torch.rand(8, 3, 6, 6), torch.arange(8) % 3
    torch.manual_seed(0)
    mixed, targets = mix(x, y)
    assert mixed.shape == x.shape
    assert targets.shape == (8, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert not torch.equal(mixed, x)
    assert (targets.amax(1) < 1).any()


def test_no_mixing_by_default() -> None:
    assert mixer(0, 0, 3) is None
