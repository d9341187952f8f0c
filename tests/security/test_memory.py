"""A shortage of memory is no fault of an image; and how much is decoded at once."""

from __future__ import annotations

import io
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from tiny import SIDE, tiny_backbone

from featcache.extraction import batch
from featcache.extraction.batch import DecodeBudget, Turn, in_turn
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import Loading, load_batches
from featcache.extraction.preprocess import Preprocess
from featcache.images.decode import BadImage, decode
from featcache.images.sources import open_images
from featcache.store.cache import Cache

PLAIN = Preprocess(resize=SIDE, crop=SIDE)

# Address space for one of the images and a half, whoever else is at it: their decoders fail.
_SHORT = """
import os, resource, sys
import numpy as np, psutil, torch
from featcache.extraction.loader import Loading, load_batches
from featcache.extraction.preprocess import Preprocess
from featcache.images.sources import open_images
from PIL import Image

folder, mb, processes = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
images = open_images(folder, cache=None)
Image.init()
rows = np.arange(len(images))
loading = Loading(4, processes=processes)
plain = Preprocess(resize=16, crop=16)
warm = list(load_batches(images, rows[:0], [plain], 8, loading))
limit = psutil.Process().memory_info().vms + (mb << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
batches = load_batches(images, rows, [plain], 8, loading)
for one in batches:
    print(len(one.rows), sorted({(p.kind, p.text) for p in one.problems.values()}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four JPEG files of 16 megapixels each, whose decoder holds all their coefficients."""
    root = tmp_path_factory.mktemp("large")
    (root / "a").mkdir()
    gradient = Image.radial_gradient("L").resize((4000, 4000))
    for i in range(4):
        picture = gradient.rotate(90 * i).convert("RGB")
        picture.putpixel((0, 0), (i, i, i))
        picture.save(root / "a" / f"{i}.jpg", progressive=True, subsampling=0)
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(
    ("mb", "processes"),
    [
        (260, True),
        pytest.param(260, False, marks=pytest.mark.slow),
        pytest.param(30, True, marks=pytest.mark.slow),
        pytest.param(30, False, marks=pytest.mark.slow),
    ],
)
def test_a_want_of_memory_condemns_no_image(large: Path, mb: int, processes: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SHORT, large, str(mb), str(processes)],
        capture_output=True, text=True, timeout=300, check=False,
        env={"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = "4 []" if mb == 260 else f"0 {[('read', batch.NO_MEMORY)]}"
    assert done.stdout.strip() == expected


def _short_for(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageFile.ImageFile.load
    left = [times]

    def load(image: ImageFile.ImageFile) -> object:
        left[0] -= 1
        if left[0] >= 0:
            raise MemoryError
        return plain(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def test_decoding_says_that_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    _short_for(1, monkeypatch)
    with pytest.raises(MemoryError):
        decode(buffer.getvalue())


def test_what_is_broken_without_a_want_of_memory_is_broken() -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode(b"no image")
    buffer = io.BytesIO()
    Image.effect_noise((3000, 3000), 50).save(buffer, "JPEG")
    with pytest.raises(BadImage, match="truncated"):
        in_turn(lambda reserve: decode(buffer.getvalue()[:9999], reserve=reserve), DecodeBudget())


def test_a_want_of_memory_is_reported_and_not_remembered(
    pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(pictures, cache=None)
    with monkeypatch.context() as patch:
        _short_for(2, patch)  # one image, and the same again
        report = fill_cache(images, backbone=tiny_backbone(), cache=cache, workers=1)
    assert list(report.failed.values()) == [batch.NO_MEMORY]
    assert Cache(cache).failed(images.name) == {}
    assert not fill_cache(images, backbone=tiny_backbone(), cache=cache).failed


def _decoding(budget: DecodeBudget, most: object, pixels: int) -> None:
    for _ in range(3):
        with Turn(budget) as turn:
            turn.reserve(pixels)
            now = budget.taken.value
            with most.get_lock():  # type: ignore[attr-defined]
                most.value = max(most.value, now)  # type: ignore[attr-defined]
            time.sleep(0.005)


def _work_by(start: Callable[..., object], budget: DecodeBudget) -> int:
    most = multiprocessing.Value("q", 0)
    workers = [start(target=_decoding, args=(budget, most, 400 + 100 * i)) for i in range(4)]
    for one in workers:
        one.start()  # type: ignore[attr-defined]
    for one in workers:
        one.join()  # type: ignore[attr-defined]
    assert budget.taken.value == 0
    return int(most.value)


@pytest.mark.parametrize("start", [threading.Thread, multiprocessing.Process])
def test_no_more_is_decoded_at_once_than_the_budget(start: Callable[..., object]) -> None:
    budget = DecodeBudget(None if start is threading.Thread else multiprocessing.get_context())
    budget.most = 1000
    assert 0 < _work_by(start, budget) <= 1000


def test_an_image_above_the_budget_is_decoded_alone() -> None:
    budget = DecodeBudget()
    budget.most = 1000
    assert _work_by(threading.Thread, budget) <= 1000
    with Turn(budget) as turn:
        turn.reserve(10**9)
        turn.reserve(10**9)  # a second decoding of the same image doesn't wait for the first
    assert budget.taken.value == 0


def test_what_a_killed_worker_held_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "_PATIENCE", 0.02)
    budget = DecodeBudget()
    budget.taken.value = budget.most
    with Turn(budget) as turn:
        turn.reserve(1)


def test_large_images_are_decoded_one_after_another(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "free_memory", lambda: 0)
    at_once, most = [0], [0]
    plain = ImageFile.ImageFile.load

    def load(image: ImageFile.ImageFile) -> object:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            return plain(image)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    images = open_images(large, cache=None)
    exact = Preprocess(resize=4000, crop=16)  # at the whole size
    (found,) = load_batches(images, np.arange(4), [exact], 4, Loading(4))
    assert (len(found.rows), most[0]) == (4, 1)
