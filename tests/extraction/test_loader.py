import io
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, Future
from dataclasses import replace

import numpy as np
import pytest
from noise import noise
from PIL import Image
from tiny import SIDE, tiny_images

from featcache.errors import DataError, FeatcacheError, RecipeError
from featcache.extraction import loader
from featcache.extraction.batch import Batch, Decoded
from featcache.extraction.loader import Loader, Loading, count_workers, load_batches
from featcache.extraction.preprocess import Preprocess
from featcache.hashing import sha256_bytes
from featcache.images.manifest import Images, from_arrays, strings, subsample
from featcache.images.sources import open_images

PLAIN = Preprocess(resize=SIDE, crop=SIDE)
FLIPPED = replace(PLAIN, view="hflip")


def loaded(images, rows, batch_size=4, workers=3, preprocesses=(PLAIN,)):
    taken = np.array(rows, np.intp)
    return list(load_batches(images, taken, preprocesses, batch_size, Loading(workers)))


@pytest.mark.parametrize("workers", [1, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_every_row_comes_once_in_order_with_its_own_pixels(workers, batch_size):
    images = tiny_images(30)
    rows = np.random.default_rng(0).permutation(30)[:23]
    batches = loaded(images, rows, batch_size, workers)
    assert np.concatenate([b.rows for b in batches]).tolist() == rows.tolist()
    assert [len(b.rows) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        expected = [images.read(row).transpose(2, 0, 1) for row in batch.rows]
        np.testing.assert_array_equal(batch.pixels[PLAIN], np.stack(expected))


def test_each_image_is_read_and_decoded_once_for_all_preprocessings():
    images = tiny_images(6)
    reads = []
    spied = replace(images, read=lambda row: reads.append(row) or images.read(row))
    (first, _) = loaded(spied, range(6), 4, preprocesses=(PLAIN, FLIPPED))
    assert sorted(reads) == list(range(6))
    np.testing.assert_array_equal(first.pixels[FLIPPED], first.pixels[PLAIN][..., ::-1])


def failing(images, broken):
    def read(row):
        if row in broken:
            if isinstance(broken[row], Exception):
                raise broken[row]
            return broken[row]
        return images.read(row)

    return replace(images, read=read)


def test_a_broken_image_drops_out_and_its_batch_goes_on():
    images = tiny_images(8)
    odd = failing(images, {2: np.zeros((3, 3, 9), np.uint8), 5: OSError(5, "Input/output error")})
    first, second = loaded(odd, range(8))
    assert first.rows.tolist() == [0, 1, 3]
    assert second.rows.tolist() == [4, 6, 7]
    assert first.problems[2].kind == "decode"
    assert (second.problems[5].kind, second.problems[5].text) == (
        "read", "can't be read: Input/output error",
    )  # fmt: skip
    np.testing.assert_array_equal(first.pixels[PLAIN][2], images.read(3).transpose(2, 0, 1))


def test_a_batch_of_nothing_but_broken_images():
    images = tiny_images(4)
    (batch,) = loaded(failing(images, dict.fromkeys(range(4), b"")), range(4))
    assert len(batch.rows) == 0
    assert batch.pixels[PLAIN].shape == (0, 3, SIDE, SIDE)
    assert len(batch.problems) == 4


def test_a_file_that_is_not_what_was_listed_is_a_problem_of_reading():
    images = Images("x", strings(["a"]), strings(["0" * 64]), *[strings([""])] * 3,
                    read=lambda _: b"other bytes")  # fmt: skip
    (batch,) = loaded(images, [0])
    assert batch.problems[0].kind == "read"
    assert "has changed since it was listed" in batch.problems[0].text


def test_any_other_error_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        loaded(failing(tiny_images(8), {3: ZeroDivisionError()}), range(8))
    cached = replace(tiny_images(2), read=Images.__dataclass_fields__["read"].default)
    with pytest.raises(DataError, match="knows no images"):
        loaded(cached, [0])


class AtOnce(Executor):
    """Does what is submitted before it returns: nobody waits for a thread that has not begun."""

    def __init__(self, *_, **__):
        pass

    def submit(self, call, *arguments):
        done = Future()
        done.set_result(call(*arguments))
        return done


def test_only_so_many_images_are_read_ahead(monkeypatch):
    monkeypatch.setattr(loader, "ThreadPoolExecutor", AtOnce)
    images = tiny_images(200)
    reads = []
    spied = replace(images, read=lambda row: reads.append(row) or images.read(row))
    batches = load_batches(spied, np.arange(200), (PLAIN,), 4, Loading(2))
    next(batches)
    assert len(reads) == 3 * 4 + 2
    batches.close()


def test_threads_end_when_the_reader_stops():
    batches = load_batches(tiny_images(50), np.arange(50), (PLAIN,), 4, Loading(3))
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("featcache-load")]


def test_workers():
    assert 1 <= count_workers("auto") <= 16
    assert count_workers(5) == 5
    for wrong in (0, -1, "many"):
        with pytest.raises(RecipeError, match="workers"):
            count_workers(wrong)


@pytest.mark.parametrize("view", ["none", "hflip", "rot90"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (72, 64)])
def test_small_images_of_all_sizes_are_cut_as_one_by_one(resize, crop, view):
    """Those that are resized together go through another resizer, with the same result."""
    rng = np.random.default_rng(0)
    sides = [(8, 8), (32, 32), (5, 7), (32, 32), (64, 20), (1, 1), (64, 64), (8, 8), (90, 70)]
    arrays = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sides]
    ids = [f"{i}.png" for i in range(len(sides))]
    images = from_arrays("sizes", arrays, ids=ids, labels=["a"] * len(sides))
    preprocess = Preprocess(resize=resize, crop=crop, view=view)
    (batch,) = load_batches(images, np.arange(len(sides)), [preprocess], 16, Loading(2))
    for found, array in zip(batch.pixels[preprocess], arrays, strict=True):
        assert np.array_equal(found, preprocess.cut(Image.fromarray(array)))


def test_what_doubles():
    preprocess = Preprocess(resize=256, crop=224)
    sides = [
        (32, 32),
        (8, 8),
        (1, 1),
        (128, 128),
        (256, 256),
        (512, 512),
        (28, 28),
        (32, 64),
        (96, 96),
    ]
    doubled = [size for size in sides if preprocess.doubles(Image.new("RGB", size))]
    assert doubled == [(32, 32), (8, 8), (1, 1), (128, 128)]
    assert not replace(preprocess, interpolation="bicubic").doubles(Image.new("RGB", (32, 32)))


def test_a_row_does_not_depend_on_who_shares_its_decoding():
    """Large JPEGs are decoded at a part of their size, which must be that of each size alone."""
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, "JPEG")
    content = data.getvalue()
    digest = sha256_bytes(content)
    one = strings(["a"])
    images = Images("large", strings(["a.jpg"]), strings([digest]), one, one, strings([""]),
                    read=lambda row: content)  # fmt: skip
    sizes = [Preprocess(resize=side, crop=side) for side in (32, 64, 70, 224)]
    together = loaded(images, [0], preprocesses=sizes)[0].pixels
    for preprocess in sizes:
        alone = loaded(images, [0], preprocesses=[preprocess])[0].pixels
        assert np.array_equal(together[preprocess], alone[preprocess])


@pytest.fixture
def folder(tmp_path):
    """Files of many sizes and kinds, some of them broken."""
    within = tmp_path / "all"
    within.mkdir()
    for i, size in enumerate([(32, 32)] * 12 + [(90, 60)] * 6 + [(60, 90), (7, 200), (300, 11)]):
        noise(i, *size).save(within / f"{i:02d}.{'jpg' if i % 2 else 'png'}")
    (within / "30.png").write_bytes((within / "00.png").read_bytes()[:700])
    (within / "31.jpg").write_bytes(b"")
    Image.new("RGBA", (20, 30), (9, 99, 200, 70)).save(within / "32.png")
    noise(99, 1500, 1000).save(within / "33.jpg")
    return tmp_path


PREPROCESSES = [
    Preprocess(resize=64, crop=56),
    Preprocess(resize=64, crop=56, view="rot90", alpha="black"),
    Preprocess(resize=40, crop=40, interpolation="nearest"),
    Preprocess(resize=64, crop=56, filters=("equalise",)),
]


def cut(batches: list[Batch]) -> tuple[list[int], dict[int, str], list[np.ndarray]]:
    """Rows, problems and pixels of all batches."""
    rows = np.concatenate([batch.rows for batch in batches]).tolist()
    problems = {row: p.text for batch in batches for row, p in batch.problems.items()}
    pixels = [
        np.concatenate([
            of.cut(p, lambda tensor: tensor, "cpu").numpy() if isinstance(of, Decoded) else of
            for of in (batch.pixels[p] for batch in batches)
        ])
        for p in PREPROCESSES
    ]  # fmt: skip
    return rows, problems, pixels


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("on_device", [False, True])
def test_worker_processes_give_what_threads_give(folder, on_device, batch_size):
    images = open_images(folder, cache=None)
    (folder / "all/05.jpg").write_bytes((folder / "all/07.jpg").read_bytes())
    (folder / "all/04.png").unlink()
    rows = np.random.default_rng(0).permutation(len(images))
    plain = cut([*load_batches(images, rows, PREPROCESSES, batch_size, Loading(2))])
    loading = Loading(3, processes=True, on_device=on_device)
    with load_batches(images, rows, PREPROCESSES, batch_size, loading) as batches:
        found = cut([*batches])
    assert found[:2] == plain[:2]
    assert (len(found[0]), len(found[1])) == (21, 4)
    for mine, theirs in zip(found[2], plain[2], strict=True):
        assert np.abs(mine.astype(int) - theirs).max() <= on_device
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_of_every_start_method(folder, method, monkeypatch):
    monkeypatch.setattr(loader, "_start_method", lambda: method)
    images = open_images(folder, cache=None)
    rows = np.arange(len(images))
    loading = Loading(1, processes=True, on_device=True)
    with load_batches(images, rows, PREPROCESSES, 16, loading) as batches:
        assert sum(len(batch.rows) + len(batch.problems) for batch in batches) == len(images)


class Deadly:
    """Reads images; the process that reads a certain one is killed."""

    def __init__(self, images: Images, rows: list[int], row: int) -> None:
        self._images, self._rows, self._row = images, rows, row

    def __call__(self, at: int) -> object:
        if self._rows[at] == self._row:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._images.read(self._rows[at])

    def part(self, rows: np.ndarray) -> "Deadly":
        return Deadly(self._images, [self._rows[row] for row in rows.tolist()], self._row)


def test_a_dead_worker_is_an_error_with_the_names_of_its_file():
    images = tiny_images(60)
    odd = replace(images, read=Deadly(images, list(range(60)), 41))
    done = []

    def load_all():
        with load_batches(odd, np.arange(60), (PLAIN,), 4, Loading(2, processes=True)) as batches:
            for batch in batches:
                done.extend(batch.rows.tolist())

    with pytest.raises(FeatcacheError, match=r"ended while it was decoding 0041\.png") as error:
        load_all()
    assert "--workers" in error.value.remedy
    assert done == list(range(len(done)))
    assert not multiprocessing.active_children()


class Wrong(Deadly):
    """Raises what no image raises."""

    def __call__(self, at: int) -> object:
        raise ZeroDivisionError

    def part(self, rows: np.ndarray) -> "Wrong":
        return Wrong(self._images, rows.tolist(), self._row)


def test_any_other_error_of_a_worker_is_not_hidden():
    images = tiny_images(8)
    odd = replace(images, read=Wrong(images, list(range(8)), 0))
    with (
        pytest.raises(ZeroDivisionError),
        load_batches(odd, np.arange(8), (PLAIN,), 4, Loading(2, processes=True)) as batches,
    ):
        next(batches)


def test_workers_end_when_the_reader_stops(folder):
    images = open_images(folder, cache=None)
    loading = Loading(2, processes=True)
    with load_batches(images, np.arange(len(images)), PREPROCESSES, 2, loading) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_a_gpu_gets_processes_where_they_can_read(folder, monkeypatch):
    files, arrays = open_images(folder, cache=None), tiny_images(4)
    assert loader.choose_loading(files, "cpu", 3) == Loading(3)
    assert loader.choose_loading(files, "cuda:0", 3) == Loading(3, True, True, True)
    assert not loader.choose_loading(arrays, "cuda:0", 3).processes
    assert loader.choose_loading(subsample(files, 5), "cuda:0", 1).processes
    monkeypatch.setattr(loader, "_SHARED_BYTES", 1 << 60)
    assert not loader.choose_loading(files, "cuda:0", 3).processes


def test_large_files_are_taken_a_few_at_a_time():
    def chunks(count: int, size: int, workers: int = 16) -> int:
        images = replace(tiny_images(4), size=np.full(count, size))
        return loader._chunks_of_a_batch(images, np.arange(count), 128, workers)

    assert chunks(100_000, 2_000) == 1
    assert chunks(100_000, 80_000) == 5
    assert chunks(100_000, 3_000_000) == 128
    assert chunks(400, 2_000) == 10  # a small set is work for all


def test_what_was_begun_early_is_given_if_it_is_what_is_asked_for(folder):
    images = open_images(folder, cache=None)
    rows = np.arange(len(images))
    some = Loader(images, 8, Loading(2, processes=True))
    for wanted in (rows, rows[:9]):
        some.begin(rows, PREPROCESSES)
        with some.load(wanted, PREPROCESSES[:2]) as batches:
            loaded = [row for batch in batches for row in (*batch.rows, *batch.problems)]
        assert sorted(loaded) == wanted.tolist()
        assert not multiprocessing.active_children()
    some.begin(rows, PREPROCESSES)
    some.close()
    assert not multiprocessing.active_children()
