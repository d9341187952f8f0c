from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Timer

import h5py
import numpy as np
import pytest
from tiny import SIDE, tiny_backbone, tiny_images

from featcache.errors import (
    CacheBusy,
    CacheMissing,
    CacheRefused,
    CacheUnwritable,
    RecipeError,
    UnknownName,
)
from featcache.extraction.extract import fill_cache
from featcache.images.manifest import IMAGES_CSV, from_arrays, strings
from featcache.store.cache import FAILED_CSV, Cache, Coverage, choose
from featcache.store.feature_file import (
    TRAINED_ON,
    FeatureFile,
    create,
    positions,
    read_trained_on,
    to_digests,
    write_trained_on,
)
from featcache.store.key import Entry
from featcache.store.locking import begin, lock

KEY = tiny_backbone().key()


def vectors(images, dim=5, seed=0):
    """Made-up vectors that belong to the content, whatever row it stands in."""
    matrix = np.random.default_rng(seed).standard_normal((32, dim))
    return np.tanh(to_digests(images.sha256) / 255 @ matrix).astype(np.float32)


def store(cache, images, key=KEY, seed=0, when=None):
    """Put the file of these images under a key into the cache, as extraction would."""
    rows = images.distinct()
    cache.note_images(images)
    path = cache.path(images.name, key)
    file = create(path.with_suffix(".new"), key, to_digests(images.sha256[rows]), 5)
    file.write(np.arange(len(rows)), vectors(images, seed=seed)[rows])
    file.finish(path)
    if when is not None:
        os.utime(path, (when, when))
    return path


def pick(images, rows, **changes):
    columns = {n: getattr(images, n)[rows] for n in ("ids", "sha256", "labels", "groups", "split")}
    return replace(images, **(columns | changes))


@pytest.fixture
def images():
    return tiny_images(12)


@pytest.fixture
def full(tmp_path, images):
    cache = Cache(tmp_path / "cache")
    store(cache, images)
    return cache


def test_a_file_is_named_by_backbone_weights_and_key(tmp_path):
    path = Cache(tmp_path).path("cells", KEY)
    assert path == tmp_path / "cells" / f"tiny.fixed.{KEY.digest[:8]}.h5"
    odd = replace(KEY, backbone="a/b c", weights="../x")
    assert Cache(tmp_path).path("cells", odd).parent == tmp_path / "cells"


def test_an_empty_cache_says_what_to_type(tmp_path):
    with pytest.raises(CacheMissing, match="featcache extract --data digits"):
        Cache(tmp_path / "none").images()
    assert Cache(tmp_path / "none").entries("x") == []


def test_the_one_data_set_is_found_and_of_two_one_must_be_named(full, images):
    assert full.images().ids.tolist() == images.ids.tolist()
    store(full, replace(images, name="other"))
    assert full.data_sets() == ["other", "tiny"]
    with pytest.raises(UnknownName, match="--data"):
        full.images()
    with pytest.raises(UnknownName, match="Did you mean other"):
        full.images("othr")
    assert len(full.images("other")) == 12


def test_without_its_list_of_images_a_data_set_is_known_still(full, images):
    (full.folder / "tiny" / IMAGES_CSV).unlink()
    assert full.data_sets() == ["tiny"]
    assert not full.has_images("tiny")
    with pytest.raises(CacheMissing, match=r"images\.csv is gone") as caught:
        full.images()
    assert "--backbone tiny --name tiny --weights fixed" in caught.value.remedy
    full.note_images(images)
    assert full.images().ids.tolist() == images.ids.tolist()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])  # more than its seal


def unfinish(path):
    """What one gets by renaming a file in progress by hand."""
    path.unlink()
    with create(path, KEY, to_digests(tiny_images(12).sha256), 5) as file:
        file.write(np.array([0]), np.ones((1, 5), np.float32))


def another_key(path):
    path.unlink()
    other = create(path.with_suffix(".new"), replace(KEY, layer="x"),
                   to_digests(tiny_images(12).sha256), 5)  # fmt: skip
    other.write(np.arange(12), np.ones((12, 5), np.float32))
    other.finish(path)


@pytest.mark.parametrize(
    "damage",
    [truncate, unfinish, lambda p: p.write_bytes(b""), lambda p: p.write_text("my notes")],
    ids=["truncated", "unfinished", "empty", "text"],
)
def test_a_broken_file_is_warned_of_and_never_gives_features(full, images, damage, caplog):
    good = store(full, images, replace(KEY, backbone="good"))
    (entry,) = full.choose("tiny", ["tiny"])
    damage(entry.path)
    with caplog.at_level(logging.WARNING, "featcache"):
        assert [e.path for e in full.entries("tiny")] == [good]
    assert str(entry.path) in caplog.text
    with pytest.raises(CacheRefused) as caught:
        full.features(images, [entry])
    assert caught.value.exit_code == 4
    with pytest.raises(CacheRefused):
        full.missing("tiny", KEY, to_digests(images.sha256))
    with pytest.raises(CacheMissing):
        full.choose("tiny", ["tiny"])


def test_a_file_of_another_key_under_this_name_is_refused(full, images):
    another_key(full.path("tiny", KEY))
    with pytest.raises(CacheRefused, match="layer x → penultimate"):
        full.missing("tiny", KEY, to_digests(images.sha256))


def test_files_in_progress_are_no_entries(full, images):
    begin(full, "tiny", replace(KEY, layer="x"), to_digests(images.sha256), 5).close()
    assert len(full.entries("tiny")) == 1


class TestChoose:
    @pytest.fixture
    def keys(self, full, images):
        """resnet twice, the second older; vgg once; and a view of vgg, the newest of all."""
        keys = {
            "new": replace(KEY, backbone="resnet", layer="a"),
            "old": replace(KEY, backbone="resnet", layer="b"),
            "vgg": replace(KEY, backbone="vgg"),
            "flipped": replace(KEY, backbone="vgg", preprocess={**KEY.preprocess, "view": "hflip"}),
        }
        for when, name in enumerate(("old", "new", "vgg", "flipped")):
            store(full, images, keys[name], when=1000 + when)
        os.utime(full.path("tiny", KEY), (1, 1))
        return keys

    def digests(self, entries):
        return [entry.key.digest for entry in entries]

    def test_by_default_each_backbone_once_the_newest(self, full, keys):
        wanted = [keys["new"].digest, KEY.digest, keys["vgg"].digest]
        assert self.digests(full.choose("tiny")) == wanted

    def test_in_the_order_named(self, full, keys):
        chosen = full.choose("tiny", ["vgg", "resnet"])
        assert [e.key.backbone for e in chosen] == ["vgg", "resnet"]

    def test_by_the_first_digits_of_a_key(self, full, keys):
        (entry,) = full.choose("tiny", [f"resnet@{keys['old'].digest[:6]}"])
        assert entry.key == keys["old"]
        assert entry.selector == f"resnet@{keys['old'].key8}"

    def test_a_view_only_by_its_key(self, full, keys):
        (entry,) = full.choose("tiny", [f"vgg@{keys['flipped'].digest}"])
        assert entry.key == keys["flipped"]

    def test_the_others_are_told(self, full, keys, caplog):
        caplog.set_level(logging.INFO, "featcache")
        full.choose("tiny", ["resnet"])
        assert f"resnet@{keys['old'].key8}" in caplog.text

    @pytest.mark.parametrize("wanted", ["resnet50", "resnet50@7be2"])
    def test_unknown_ones_get_the_command(self, full, keys, wanted):
        with pytest.raises(CacheMissing, match=r"has no features of") as caught:
            full.choose("tiny", [wanted])
        assert caught.value.remedy == shlex.join(
            ["featcache", "extract", "--data", "memory", "--backbone", wanted.split("@")[0],
             "--name", "tiny", "--cache", str(full.folder)]
        )  # fmt: skip

    def test_an_unknown_key_of_a_known_name_gets_those_that_are_there(self, full, keys):
        with pytest.raises(CacheMissing, match=r"has no features of") as caught:
            full.choose("tiny", ["resnet@ffffffffffff"])
        assert f"resnet@{keys['old'].key8}" in caught.value.remedy

    def test_nothing_at_all(self, full, images):
        full.path("tiny", KEY).unlink()
        with pytest.raises(CacheMissing, match="no finished features of tiny"):
            full.choose("tiny")


class TestFeatures:
    def test_are_aligned_by_content_whatever_happened_to_the_manifest(self, full, images):
        rng = np.random.default_rng(0)
        for _ in range(5):
            rows = rng.integers(0, 12, 9)  # reordered, repeated, some left out
            other = replace(
                pick(images, rows, ids=strings(f"new/{i}" for i in range(9))),
                labels=strings(rng.choice(["p", "q"], 9)),
                split=strings(["train"] * 9),
            )
            found = full.features(other, full.choose("tiny"))
            np.testing.assert_array_equal(found.X, vectors(images)[rows])
            for theirs, ours in (("ids", "ids"), ("y", "labels"), ("sha256", "sha256"),
                                 ("split", "split"), ("groups", "groups")):  # fmt: skip
                assert getattr(found, theirs).tolist() == getattr(other, ours).tolist()

    def test_blocks_stand_side_by_side_in_the_order_of_the_entries(self, full, images):
        other = replace(KEY, backbone="other")
        store(full, images, other, seed=1)
        found = full.features(images, full.choose("tiny", ["other", "tiny"]))
        np.testing.assert_array_equal(
            found.X, np.hstack([vectors(images, seed=1), vectors(images)])
        )
        assert found.X.dtype == np.float32
        assert (found.blocks, found.names) == ((5, 5), ("other", "tiny"))
        assert found.keys == (other.digest, KEY.digest)
        assert found.data == "tiny"

    def test_two_files_of_one_backbone_are_told_apart(self, full, images):
        other = replace(KEY, layer="x")
        store(full, images, other, seed=1)
        both = [f"tiny@{KEY.key8}", f"tiny@{other.key8}"]
        assert full.features(images, full.choose("tiny", both)).names == ("tiny", "tiny-x")

    def test_an_image_without_a_vector_is_refused(self, full):
        more = tiny_images(14)
        with pytest.raises(CacheRefused, match=r"2 of 14 images .*0012") as caught:
            full.features(more, full.choose("tiny"))
        assert caught.value.exit_code == 4
        assert caught.value.remedy == (
            "featcache extract --data memory --backbone tiny --name tiny --weights fixed "
            f"--image-size 8 --precision fp32 --cache {full.folder}"
        )
        full.note_images(more)
        with pytest.raises(CacheRefused, match="extract --data memory --backbone tiny"):
            full.features(full.images(), full.choose("tiny"))

    def test_an_image_that_one_of_two_backbones_lacks_is_refused(self, full, images):
        store(full, pick(images, np.arange(11)), replace(KEY, backbone="other"))
        with pytest.raises(CacheRefused, match="1 of 12 images"):
            full.features(images, full.choose("tiny"))

    def test_images_whose_extraction_is_not_at_its_end_are_left_out(self, full, images, caplog):
        more = tiny_images(20)
        todo = pick(more, np.arange(15))
        for key in (KEY, replace(KEY, backbone="other")):
            if key != KEY:
                store(full, pick(images, np.arange(2, 12)), key)
            with begin(full, "tiny", key, to_digests(todo.sha256), 5) as file:
                file.write(np.array([12]), np.ones((1, 5), np.float32))  # done, not finished
        full.note_images(todo)
        full.note_failed(todo, {14: ("decode", "cut short")})
        for lazy in (False, True):
            found = full.features(full.images(), full.choose("tiny"), lazy=lazy)
            assert found.ids.tolist() == images.ids.tolist()[2:]  # those that both have
            assert np.array_equal(found.X[:][:, 5:], vectors(images)[2:])
        assert "4 of 15 images of tiny have no vector yet" in caplog.text
        assert "--backbone other,tiny --name tiny" in caplog.text
        full.partial("tiny", KEY).unlink()
        with pytest.raises(CacheRefused, match="4 of 15 images"):
            full.features(full.images(), full.choose("tiny"))
        assert len(full.features(full.images(), full.choose("tiny", ["other"]))) == 10

    @pytest.mark.parametrize("lazy", [False, True])
    def test_a_file_that_is_replaced_while_it_is_read_is_refused(
        self, full, images, lazy, monkeypatch
    ):
        backwards = pick(images, np.arange(12)[::-1])

        def replaced(wanted, have):
            found = positions(wanted, have)
            store(full, backwards)
            return found

        monkeypatch.setattr("featcache.store.cache.positions", replaced)
        with pytest.raises(CacheRefused, match="changed while it was read"):
            full.features(images, full.choose("tiny"), lazy=lazy)

    def test_images_that_failed_are_left_out_with_a_warning(self, full, caplog):
        more = tiny_images(14)
        full.note_failed(more, {12: ("decode", "cut short"), 13: ("decode", "empty")})
        found = full.features(more, full.choose("tiny"))
        assert found.ids.tolist() == more.ids.tolist()[:12]
        np.testing.assert_array_equal(found.X, vectors(more)[:12])
        assert "14 images: 12 embedded, 2 failed" in caplog.text

    def test_images_that_could_not_be_read_are_not_left_out_silently(self, full):
        more = tiny_images(13)
        full.note_failed(more, {12: ("read", "no permission")})
        with pytest.raises(CacheRefused, match="1 of 13"):
            full.features(more, full.choose("tiny"))

    def test_no_image_left_is_refused(self, full):
        other = tiny_images(2, seed=9)
        full.note_failed(other, {0: ("decode", "x"), 1: ("decode", "x")})
        with pytest.raises(CacheRefused, match="not one of 2"):
            full.features(other, full.choose("tiny"))


class TestFailed:
    def test_reads_back_whatever_the_names(self, full, images):
        odd = replace(images, ids=strings(f'{i},"\r\n' for i in range(12)))
        full.note_failed(odd, {3: ("decode", 'bad, "very"\nbad'), 5: ("read", "gone")})
        assert full.failed("tiny") == {str(images.sha256[3]): 'bad, "very"\nbad'}

    def test_no_problem_no_file(self, full, images):
        full.note_failed(images, {1: ("decode", "x")})
        full.note_failed(images, {})
        assert not (full.folder / "tiny" / FAILED_CSV).exists()
        assert full.failed("tiny") == {}

    def test_a_foreign_failed_csv_is_no_trouble(self, full):
        (full.folder / "tiny" / FAILED_CSV).write_text("id,why\n1,2,3\n\nx\n")
        assert full.failed("tiny") == {}

    def test_nor_is_a_damaged_one_and_it_is_written_again(self, full, images, caplog):
        path = full.folder / "tiny" / FAILED_CSV
        full.note_failed(images, {3: ("decode", "broken")})
        path.write_bytes(path.read_bytes().replace(b"broken", b"br\xefken"))
        assert full.failed("tiny") == {}
        assert str(path) in caplog.text
        full.note_failed(images, {3: ("decode", "broken")})
        assert full.failed("tiny") == {str(images.sha256[3]): "broken"}


class TestBegin:
    def filled(self, cache, images, data="tiny", key=KEY):
        """Which contents of these images need no forward pass."""
        with begin(cache, data, key, to_digests(images.sha256), 5) as file:
            done = file.done()
            rows = positions(to_digests(images.sha256), file.digests)
            known = done[rows]
            values = np.empty((int(known.sum()), 5), np.float32)
            file.read(rows[known], values)
            np.testing.assert_array_equal(values, vectors(images)[known])
        return known

    def test_nothing_is_known_in_an_empty_cache(self, tmp_path, images):
        (tmp_path / "tiny").mkdir()
        assert not self.filled(Cache(tmp_path), images).any()

    def test_rows_of_the_finished_file(self, full):
        more = tiny_images(15)
        assert self.filled(full, more).tolist() == [True] * 12 + [False] * 3

    def test_rows_of_the_finished_file_that_are_not_asked_for_stay(self, full, images):
        few = tiny_images(14)
        few = pick(few, np.array([13, 0]))
        with begin(full, "tiny", KEY, to_digests(few.sha256), 5) as file:
            assert len(file) == 13
            assert int(file.done().sum()) == 12

    def test_rows_of_an_interrupted_attempt(self, tmp_path, images):
        cache = Cache(tmp_path)
        (tmp_path / "tiny").mkdir()
        with begin(cache, "tiny", KEY, to_digests(images.sha256), 5) as file:
            file.write(np.arange(4), vectors(images)[:4])
        assert self.filled(cache, images).tolist() == [True] * 4 + [False] * 8
        assert self.filled(cache, tiny_images(13)).tolist() == [True] * 4 + [False] * 9

    def test_rows_of_another_data_set(self, full, images):
        other = pick(tiny_images(14), np.arange(10, 14), name="other")
        (full.folder / "other").mkdir()
        assert self.filled(full, other, "other").tolist() == [True, True, False, False]

    def test_never_rows_of_another_key(self, full, images):
        other = replace(KEY, weights_sha256="another file under the same name")
        assert not self.filled(full, images, key=other).any()

    def test_rows_of_another_key_that_hides_under_the_same_name(self, full, images):
        donor = full.folder / "other" / full.path("tiny", KEY).name
        donor.parent.mkdir()
        shutil.move(full.path("tiny", KEY), donor)
        another_key(donor)
        assert not self.filled(full, images).any()

    @pytest.mark.parametrize("name", ["features", "sha256", "checksum"])
    def test_a_damaged_row_is_not_copied(self, full, images, name):
        import h5py

        with h5py.File(full.path("tiny", KEY), "r+") as file:
            value = file[name][3]
            file[name][3] = value + np.ones_like(value)
        known = self.filled(full, images)
        assert known.tolist() == [i != 3 for i in range(12)]

    def test_a_damaged_row_of_an_interrupted_attempt_is_done_again(self, tmp_path, images):
        import h5py

        cache = Cache(tmp_path)
        (tmp_path / "tiny").mkdir()
        with begin(cache, "tiny", KEY, to_digests(images.sha256), 5) as file:
            file.write(np.arange(12), vectors(images))
            path = file.path
        with h5py.File(path, "r+") as file:
            file["features"][7] = 0
        assert self.filled(cache, images).tolist() == [i != 7 for i in range(12)]

    @pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n"])
    def test_a_broken_attempt_is_begun_anew(self, full, content, tmp_path, images):
        partial = full.path("tiny", KEY).with_name(f".{full.path('tiny', KEY).name}.partial")
        partial.write_bytes(content)
        assert self.filled(full, images).all()

    def test_a_broken_file_of_another_data_set_is_warned_of(self, full, images, caplog):
        donor = full.folder / "other" / full.path("tiny", KEY).name
        donor.parent.mkdir()
        donor.write_bytes(b"nonsense")
        other = tiny_images(13)
        assert int(self.filled(full, other).sum()) == 12
        assert f"not reused: {donor}" in caplog.text

    def test_a_donor_without_rows(self, tmp_path, images):
        cache = Cache(tmp_path)
        donor = cache.path("other", KEY)
        donor.parent.mkdir()
        create(donor.with_suffix(".new"), KEY, np.zeros((0, 32), np.uint8), 5).finish(donor)
        (tmp_path / "tiny").mkdir()
        assert not self.filled(cache, images).any()


def test_known_dim(full, images):
    assert full.known_dim(KEY) == 5
    assert full.known_dim(replace(KEY, layer="x")) is None


HOLD = """
import sys
from featcache.store.cache import Cache
from featcache.store.key import read_key
from featcache.store.locking import lock
with lock(Cache(sys.argv[1]), "tiny", read_key(sys.argv[2], "")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), KEY.json()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"held\n"
    yield process
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def test_another_process_that_writes_is_not_disturbed(tmp_path, holder):
    cache = Cache(tmp_path)
    with pytest.raises(CacheBusy, match="another process is writing"), lock(cache, "tiny", KEY):
        pass
    Timer(0.3, holder.stdin.close).start()
    with lock(cache, "tiny", KEY, wait=True):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait(10)
    with lock(Cache(tmp_path), "tiny", KEY):
        pass


def test_positions():
    have = np.arange(5 * 32, dtype=np.uint8).reshape(5, 32)
    wanted = np.concatenate([have[[4, 0]], np.full((1, 32), 255, np.uint8), have[[4]]])
    assert positions(wanted, have).tolist() == [4, 0, -1, 4]
    assert positions(have[:0], have).tolist() == []
    assert positions(have[:1], have[:0]).tolist() == [-1]


def test_rows_in_any_order_are_read_span_by_span(tmp_path, monkeypatch):
    reads, plain = [], h5py.Dataset.__getitem__

    def counted(self, where, **options):
        if self.name == "/features":
            reads.append(where)
        return plain(self, where, **options)

    rng = np.random.default_rng(0)
    n, dim = 20_000, 8
    digests = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    values = rng.standard_normal((n, dim), np.float32)
    file = create(tmp_path / "x", KEY, digests, dim)
    file.write(np.arange(n), values)
    file.finish(tmp_path / "x.h5")
    rows, out = rng.permutation(n), np.empty((n, dim), np.float32)
    with FeatureFile(tmp_path / "x.h5") as done:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
        done.read(np.arange(n), out)
        spans = len(reads)
        done.read(rows, out)
        np.testing.assert_array_equal(out, values[rows])
        assert (positions(digests[rows], done.digests) == rows).all()
    assert len(reads) == 2 * spans
    assert all(isinstance(where, slice) for where in reads)


def test_a_cache_is_a_folder_and_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheUnwritable, match="s3://bucket/cache"):
        Cache("s3://bucket/cache")
    assert not list(tmp_path.iterdir())


def test_blocks_stand_in_the_order_of_their_names(tmp_path, images):
    cache = Cache(tmp_path / "cache")
    for name in ("b", "a"):
        store(cache, images, replace(KEY, backbone=name), seed=ord(name))
    chosen = cache.choose("tiny", ["b", "a"])
    assert [entry.key.backbone for entry in chosen] == ["b", "a"]
    for entries in (chosen, chosen[::-1]):
        for lazy in (False, True):
            features = cache.features(images, entries, lazy=lazy)
            assert features.names == ("a", "b")
            np.testing.assert_array_equal(features.X[:][:, :5], vectors(images, seed=ord("a")))
            np.testing.assert_array_equal(features.X[:][:, 5:], vectors(images, seed=ord("b")))


# How many images have a vector, in words.


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((1, 1, 1, 0), "1 image"),
        ((1797, 1797, 1797, 0), "1,797 images"),
        ((1, 0, 0, 1), "1 image: 0 embedded, 1 failed"),
        ((13, 11, 10, 2), "13 images: 11 embedded (10 distinct), 2 failed"),
        ((13, 10, 10, 1), "13 images: 10 embedded, 1 failed, 2 missing"),
    ],
)
def test_counts_in_words(counts, words):
    assert str(Coverage(*counts)) == words


# Which file of several a spec picks.

PLAIN = tiny_backbone("net").key()

LARGE = replace(PLAIN, preprocess={**PLAIN.preprocess, "crop": 16, "resize": 16})

LOG = replace(PLAIN, preprocess={**PLAIN.preprocess, "filters": ["log-1.5"]})

FILES = [Entry("d", Path(f"cache/d/{k.stem}.h5"), k, 3, 5, 60, float(i))
         for i, k in enumerate((PLAIN, LARGE, LOG))]  # fmt: skip


def chosen(*wanted: str) -> list[str]:
    found = choose(FILES, "d", "cache", "photos", wanted)
    return [{PLAIN.digest: "plain", LARGE.digest: "large", LOG.digest: "log"}[e.key.digest]
            for e in found]  # fmt: skip


def test_a_spec_picks_the_file_that_agrees_with_it() -> None:
    assert chosen("net:size=16") == ["large"]
    assert chosen("net:filter=none:size=8") == ["plain"]
    assert chosen("net:size=8") == ["log"]  # of two that agree the newest
    assert chosen("net-16px", "net-log-1.5") == ["large", "log"]
    assert chosen(f"net-16px@{LARGE.key8}") == ["large"]
    assert chosen() == ["log"]


@pytest.mark.parametrize("first", [True, False])
def test_a_name_leaves_the_file_that_a_spec_beside_it_means(first: bool) -> None:
    wanted = ["net", "net:filter=log-1.5"]
    expected = ["large", "log"]
    assert chosen(*(wanted if first else wanted[::-1])) == (expected if first else expected[::-1])


def test_a_backbone_of_ones_own_is_found_whatever_its_name_holds() -> None:
    for name in ("net=1", "net@home", "a:size=3"):
        entry = replace(FILES[0], key=replace(PLAIN, backbone=name))
        assert choose([entry], "d", "cache", "") == [entry]
        assert choose([entry], "d", "cache", "", [name]) == [entry]
        assert choose([entry], "d", "cache", "", [f"{name}@{entry.key.digest}"]) == [entry]


def test_what_is_absent_gets_the_command_that_makes_it() -> None:
    with pytest.raises(CacheMissing, match=f"no features of net:size=32.*net@{LARGE.key8}") as e:
        chosen("net:size=32")
    assert e.value.remedy == "featcache extract --data photos --backbone net:size=32 --name d"


def test_a_bad_spec_is_said_to_be_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean size"):
        chosen("net:siz=32")
    with pytest.raises(RecipeError, match="names no backbone"):
        chosen("@")


# Views in the cache: found by their key, loaded as further rows of their images.


def fill(cache, images, views=("none", "hflip"), **options):
    for view in views:
        backbones = [tiny_backbone("a", 5, 0, view=view), tiny_backbone("b", 3, 1, view=view)]
        fill_cache(images, backbone=backbones, cache=cache, **options)


def test_views_are_further_rows_with_every_backbone_s_own_view(cache):
    images = tiny_images(12)
    fill(cache, images, ("none", "hflip", "rot90"))
    store = Cache(cache)
    entries = store.choose("tiny", ["b", "a"])
    plain = store.features(images, entries)
    seen = store.features(images, entries, ["rot90", "hflip"])
    assert len(seen) == 36
    assert seen.view.tolist() == ["none"] * 12 + ["rot90"] * 12 + ["hflip"] * 12
    np.testing.assert_array_equal(seen.X[:12], plain.X)
    assert seen.ids[12:14].tolist() == ["0000.png@rot90", "0001.png@rot90"]
    assert seen.sources.tolist() == plain.ids.tolist() * 3
    for name in ("y", "sha256", "groups", "split"):
        assert getattr(seen, name).tolist() == getattr(plain, name).tolist() * 3
    # The oracle: images that were mirrored before they were extracted at all.
    pixels = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    mirrored = from_arrays(
        "mirrored",
        [one[:, ::-1] for one in pixels],
        ids=images.ids.tolist(),
        labels=images.labels.tolist(),
    )
    fill(cache, mirrored, ("none",))
    oracle = store.features(mirrored, store.choose("mirrored", ["b", "a"]))
    np.testing.assert_allclose(seen.X[24:], oracle.X, atol=1e-6)
    assert not np.allclose(seen.X[24:], plain.X)


def test_a_view_twice_is_one(cache):
    images = tiny_images(6)
    fill(cache, images)
    store = Cache(cache)
    entries = store.choose("tiny")
    assert len(store.features(images, entries, ["hflip", "hflip"])) == 12


def test_views_do_not_stand_for_their_images(cache):
    images = tiny_images(6)
    fill(cache, images)
    chosen = Cache(cache).choose("tiny")
    assert [entry.key.preprocess["view"] for entry in chosen] == ["none", "none"]


def test_an_absent_view_names_the_command(cache):
    images = tiny_images(6)
    fill(cache, images)
    fill_cache(images, backbone=tiny_backbone("a", 5, 0, view="rot90"), cache=cache)
    store = Cache(cache)
    with pytest.raises(CacheMissing, match="view rot90 of b@") as caught:
        store.features(images, store.choose("tiny"), ["rot90"])
    assert "--backbone b --name tiny --weights fixed --image-size 8" in caught.value.remedy
    assert "--view rot90" in caught.value.remedy
    assert f"--cache {cache}" in caught.value.remedy


def test_a_view_of_another_preprocessing_does_not_serve(cache):
    images = tiny_images(6)
    fill_cache(images, backbone=tiny_backbone("a"), cache=cache)
    other = tiny_backbone("a", view="hflip")
    other = replace(other, preprocess=replace(other.preprocess, interpolation="nearest"))
    fill_cache(images, backbone=other, cache=cache)
    store = Cache(cache)
    with pytest.raises(CacheMissing, match="hflip"):
        store.features(images, store.choose("tiny"), ["hflip"])


def test_none_and_views_of_views_are_refused(cache):
    images = tiny_images(6)
    fill(cache, images)
    store = Cache(cache)
    with pytest.raises(RecipeError, match="the image itself"):
        store.features(images, store.choose("tiny"), ["none"])
    view = [e for e in store.entries("tiny") if e.key.preprocess["view"] == "hflip"]
    with pytest.raises(RecipeError, match="holds a view already"):
        store.features(images, view, ["hflip"])


def test_an_image_without_its_view_is_refused(cache):
    images = tiny_images(8)
    fill(cache, tiny_images(6))
    fill(cache, images, ("none",))
    store = Cache(cache)
    with pytest.raises(CacheRefused, match="2 of 8 images") as caught:
        store.features(images, store.choose("tiny"), ["hflip"])
    assert "--view hflip" in caught.value.remedy


def test_trained_on_goes_from_file_to_features(cache):
    images = tiny_images(6)
    fill(cache, images, ("none",))
    store = Cache(cache)
    a, b = store.choose("tiny", ["a", "b"])
    assert store.features(images, [a, b]).trained_on == ()
    write_trained_on(b.path, images.sha256[:4])
    write_trained_on(b.path, images.sha256[:2].tolist() * 2)
    assert read_trained_on(a.path) == frozenset()
    loaded = store.features(images, [a, b])
    assert loaded.trained_on == (frozenset(), frozenset(images.sha256[:2].tolist()))
    assert loaded.select(["b"]).trained_on == loaded.trained_on[1:]
    assert loaded.select(["a"]).trained_on == (frozenset(),)


def test_a_strange_trained_on_is_refused(cache):
    import h5py

    fill(cache, tiny_images(6), ("none",))
    (entry, _) = Cache(cache).choose("tiny")
    with h5py.File(entry.path, "r+") as file:
        file.create_dataset(TRAINED_ON, data=np.zeros(5))
    with pytest.raises(CacheRefused, match="trained_on"):
        read_trained_on(entry.path)
