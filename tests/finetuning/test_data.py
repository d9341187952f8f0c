from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from noise import noise
from small import coloured, small_backbone

from featcache.errors import CacheRefused, DataError
from featcache.extraction.extract import extract
from featcache.extraction.loader import Loading
from featcache.extraction.preprocess import Preprocess
from featcache.finetuning import data
from featcache.finetuning.augment import draw
from featcache.finetuning.data import Pixels, table, validation_rows
from featcache.finetuning.options import Options
from featcache.fitting.leakage import refuse_trained
from featcache.fitting.splits import components, make_folds
from featcache.images.decode import decode
from featcache.images.files import from_files
from featcache.images.manifest import from_arrays
from featcache.reporting.schema import rows_digest

CPU = torch.device("cpu")

SEEN = Preprocess(resize=10, crop=8)


def _train(pixels: Pixels, rows: np.ndarray) -> torch.Tensor:
    draws = draw(pixels.sizes[torch.from_numpy(rows)], Options(), torch.Generator().manual_seed(0))
    return pixels.augment(*next(pixels.train_batches(rows, draws, [slice(len(rows))])))


@pytest.mark.parametrize("budget", [0, 500, 1 << 30])
def test_what_stays_in_memory_changes_nothing(budget: int) -> None:
    images = coloured(12, 20)
    pixels = Pixels(images, [SEEN], CPU, 2, budget)
    whole = Pixels(images, [SEEN], CPU, 1)
    rows = np.array([7, 0, 3])
    assert torch.equal(_train(pixels, rows), _train(whole, rows))
    mine, other = next(pixels.eval_batches(rows))[0], next(whole.eval_batches(rows))[0]
    assert torch.equal(mine, other)


def test_evaluation_sees_what_extraction_sees() -> None:
    images = coloured(5, 20)
    batch = next(Pixels(images, [SEEN], CPU, 1).eval_batches(np.arange(5)))[0]
    cut = np.stack([SEEN.cut(decode(images.read(row))) for row in range(5)])
    assert torch.equal(batch, SEEN.normalise(torch.from_numpy(cut)))


@pytest.mark.parametrize("side", [4, 20])  # laid on the device as a whole, and a batch at a time
def test_what_a_device_cuts_for_validation_is_what_extraction_sees(side: int) -> None:
    images = coloured(150, side)
    other = Preprocess(resize=12, crop=6, view="hflip", interpolation="bicubic")
    pixels = Pixels(images, [SEEN, other], CPU, 2)
    here = list(pixels.eval_batches(np.arange(150)[::-1].copy()))
    pixels.cuts_on_device = True
    there = list(pixels.eval_batches(np.arange(150)[::-1].copy()))
    assert [len(batch[0]) for batch in there] == [128, 22]
    for mine, theirs in zip(here, there, strict=True):
        for x, y in zip(mine, theirs, strict=True):
            assert (x - y).abs().max() < 2.1 / 255 / 0.22  # two levels


def test_what_is_validated_on_is_cut_once_if_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others, room = np.arange(30), np.arange(30, 60), 30 * 3 * 8 * 8
    pixels = Pixels(coloured(60, 20), [SEEN, SEEN], CPU, 1)
    decoded = Pixels._decoded
    monkeypatch.setattr(data, "_room", lambda device: room)
    looked: list[int] = []

    def spy(self: Pixels, row: int) -> np.ndarray:
        looked.append(row)
        return decoded(self, row)

    monkeypatch.setattr(Pixels, "_decoded", spy)

    (first,) = list(pixels.eval_batches(rows, keep=True))
    assert len(looked) == 30
    (again,) = list(pixels.eval_batches(rows, keep=True))
    list(pixels.eval_batches(others))  # does not take its place
    list(pixels.eval_batches(rows, keep=True))
    assert len(looked) == 60
    assert torch.equal(first[0], again[0])
    list(pixels.eval_batches(others, keep=True))
    list(pixels.eval_batches(rows))
    assert len(looked) == 120
    assert pixels.forget()
    assert not pixels.forget()
    for _ in range(2):
        list(pixels.eval_batches(rows, keep=True))
    assert len(looked) == 180
    room -= 1
    pixels = Pixels(coloured(60, 20), [SEEN], CPU, 1)
    for _ in range(2):
        list(pixels.eval_batches(rows, keep=True))
    assert len(looked) == 240


def test_batches_come_in_order_and_whole() -> None:
    images = coloured(300, 8)
    pixels = Pixels(images, [Preprocess(resize=8, crop=8)], CPU, 3)
    batches = [batch[0] for batch in pixels.eval_batches(np.arange(300)[::-1])]
    assert [len(batch) for batch in batches] == [128, 128, 44]
    one = next(pixels.eval_batches(np.array([0])))[0]
    assert torch.equal(batches[-1][-1:], one)


def test_every_backbone_gets_its_own_size() -> None:
    other = Preprocess(resize=6, crop=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = Pixels(coloured(4, 8), [SEEN, other], CPU, 1)
    sizes = [x.shape for x in next(pixels.eval_batches(np.arange(4)))]
    assert sizes == [(4, 3, 8, 8), (4, 3, 4, 4)]
    batch = torch.full((2, 3, 8, 8), 0.75)
    first, second = pixels.as_seen(batch)
    assert first.shape == (2, 3, 8, 8)
    torch.testing.assert_close(second, torch.full((2, 3, 4, 4), 0.5))


def test_broken_images_are_left_out(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        noise(i).save(path)
    paths[1].write_bytes(b"nothing")
    ids = [path.name for path in paths]
    images = from_files("some", paths, ids=ids, labels=list("abab"))
    noise(9).save(paths[2])  # changed since it was listed
    pixels = Pixels(images, [SEEN], CPU, 1)
    assert sorted(pixels.bad) == [1, 2]
    left = pixels.drop_bad()
    assert left.ids.tolist() == ["0.png", "3.png"]
    assert len(next(pixels.eval_batches(np.arange(2)))[0]) == 2
    cut = torch.from_numpy(SEEN.cut(decode(paths[3].read_bytes())).copy())
    found = next(pixels.eval_batches(np.array([1])))[0]
    assert torch.equal(found, SEEN.normalise(cut[None]))
    assert "2 images can't be decoded" in caplog.text


def test_processes_decode_as_threads_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(30, 20), (9, 400), (500, 400), (20, 30), (31, 20)] * 18
    paths = [tmp_path / f"{i:03d}.{('png', 'jpg')[i % 2]}" for i in range(len(sizes))]
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        noise(i).resize(size).save(path)
    paths[1].write_bytes(b"nothing")
    images = from_files("some", paths, ids=[path.name for path in paths], labels=["a", "b"] * 45)
    noise(9).save(paths[7], "png")  # changed since it was listed
    paths[80].unlink()
    seen = [SEEN, Preprocess(resize=12, crop=12)]
    threads = Pixels(images, seen, CPU, 2, 10_000_000)
    by_processes = Loading(1, processes=True, on_device=True)  # batches of 64
    monkeypatch.setattr(data, "choose_loading", lambda *_: by_processes)
    found = Pixels(images, seen, CPU, 2, 10_000_000)
    assert found.bad == threads.bad
    assert sorted(found.bad) == [1, 7, 80]
    assert torch.equal(found.sizes, threads.sizes)
    assert (found.sizes[17] < 100).all()  # of a JPEG no more than is needed
    assert found._kept.keys() == threads._kept.keys()
    for row, image in threads._kept.items():
        assert np.array_equal(found._kept[row], image)


def test_nothing_but_broken_images() -> None:
    images = from_arrays("x", [np.zeros((2, 2, 5), np.uint8)], ids=["a"], labels=["b"])
    with pytest.raises(DataError, match="not one of 1"):
        Pixels(images, [SEEN], CPU, 1).drop_bad()


# Which rows train, validate and test.


@pytest.mark.parametrize("options", [{}, {"folds": 3}])
def test_folds_and_digest_are_those_of_cached_features(cache, options: dict) -> None:
    images, backbone = coloured(), small_backbone()
    cached = extract(images, backbone=backbone, cache=cache, device="cpu")
    mine = table(images, [backbone])
    theirs = make_folds(cached, **options, seed=3)
    folds = make_folds(mine, **options, seed=3)
    for a, b in zip(folds, theirs, strict=True):
        assert np.array_equal(a.train, b.train)
        assert np.array_equal(a.test, b.test)
    assert rows_digest(mine, folds) == rows_digest(cached, theirs)


def test_the_own_val_split_validates() -> None:
    images = coloured(30)
    images.split[[1, 5]] = "test"
    images.split[[3, 4, 12]] = "val"
    features = table(images, [small_backbone()])
    (fold,) = make_folds(features)
    train, held = validation_rows(features, fold, 0.1, 0)
    assert held.tolist() == [3, 4, 12]
    assert set(train) | set(held) == set(fold.train)
    assert not set(train) & set(held)


def test_else_a_stratified_share_that_keeps_groups_together() -> None:
    images = coloured(120, groups=[f"g{i // 3}" for i in range(120)])
    features = table(images, [small_backbone()])
    (fold,) = make_folds(features)
    train, held = validation_rows(features, fold, 0.1, 0)
    linked = components(features)
    assert not set(linked[train]) & set(linked[held])
    assert sorted([*train, *held]) == sorted(fold.train)
    assert 6 <= len(held) <= 12  # of 80
    assert len(set(features.y[held])) == 3
    again = validation_rows(features, fold, 0.1, 0)
    other = validation_rows(features, fold, 0.1, 1)
    assert np.array_equal(again[1], held)
    assert not np.array_equal(other[1], held)


def test_too_few_rows_or_no_share_give_no_validation() -> None:
    features = table(coloured(9), [small_backbone()])
    (fold,) = make_folds(features)
    assert not len(validation_rows(features, fold, 0.1, 0)[1])
    assert not len(validation_rows(features, fold, 0.0, 0)[1])


def test_weights_that_have_seen_a_row_are_not_tested_on_it() -> None:
    images = coloured(30)
    features = table(images, [small_backbone()])
    (fold,) = make_folds(features)
    seen = frozenset(images.sha256[fold.train].tolist())
    refuse_trained(table(images, [small_backbone(trained_on=seen)]), [fold])
    one = frozenset(images.sha256[fold.test[:1]].tolist())
    with pytest.raises(CacheRefused, match="1 of 12 test images"):
        refuse_trained(table(images, [small_backbone(trained_on=one)]), [fold])


def test_equal_images_count_as_one_in_the_digest_too() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    images = from_arrays("two", [pixels, pixels], ids=["a", "b"], labels=["x", "y"])
    assert len(set(components(table(images, [small_backbone()])).tolist())) == 1
