import io

import numpy as np
import pytest
from noise import noise
from PIL import Image

from featcache.images.dhash import FLAT, dhash, no_hashes, symmetries, to_cells, to_hashes

NEAR = 24  # bits
TURNS = [None, *Image.Transpose]


def jpeg(image, quality=75):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def apart(one, other):
    return int(np.unpackbits(one ^ other).sum())


CHANGES = {
    "jpeg": jpeg,
    "half": lambda image: image.resize((45, 35), Image.Resampling.BICUBIC),
    "large": lambda image: image.resize((1100, 860), Image.Resampling.BICUBIC),
    "darker": lambda image: image.point(lambda value: round(value * 0.8)),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_near_and_another_picture_is_not(change):
    pictures = [noise(seed, 90, 70) for seed in range(6)]
    hashes = [dhash(picture) for picture in pictures]
    for i, picture in enumerate(pictures):
        found = [apart(dhash(CHANGES[change](picture)), other) for other in hashes]
        assert found[i] <= NEAR // 2
        assert min(found[:i] + found[i + 1 :]) > 2 * NEAR


def test_the_eight_hashes_are_those_of_the_flipped_and_turned_picture():
    picture = noise(0, 90, 70)
    eight = [hashes[0] for hashes in symmetries(dhash(picture)[None])]
    assert (eight[0] == dhash(picture)).all()
    nearest = []
    for turn in TURNS:
        wanted = dhash(picture if turn is None else picture.transpose(turn))
        distances = [apart(wanted, one) for one in eight]
        assert min(distances) <= 6  # resizing rounds between its two passes
        nearest.append(int(np.argmin(distances)))
    assert sorted(nearest) == list(range(8))


def test_flat_pictures_have_one_hash_however_bright_noisy_or_turned():
    for value in (0, 90, 255):
        assert (dhash(Image.new("RGB", (40, 30), (value,) * 3)) == FLAT).all()
    grain = np.random.default_rng(0).normal(120, 2, (200, 200, 3)).astype(np.uint8)
    assert apart(dhash(Image.fromarray(grain)), FLAT) <= 2
    assert all((one == FLAT).all() for one in symmetries(FLAT[None]))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (1500, 1), (17, 8), (8, 17)])
def test_any_size(size):
    assert dhash(noise(0, *size)).shape == (32,)


def test_cells_read_back():
    hashes = np.stack([dhash(noise(0, 90, 70)), np.zeros(32, np.uint8), FLAT])
    cells = to_cells(hashes)
    assert cells[1] == ""
    assert (to_hashes(cells) == hashes).all()
    assert to_hashes([]).shape == no_hashes().shape == (0, 32)
