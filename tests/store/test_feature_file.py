from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stored import blobs, store

from featcache.errors import CacheRefused
from featcache.store import feature_file as module
from featcache.store.feature_file import (
    FeatureFile,
    checksums,
    create,
    damaged_rows,
    to_digests,
    to_hex,
)
from featcache.store.key import FORMAT, Key


def key(dtype="float32", **changes):
    return Key("net", "tests", "v1", "0" * 64, "penultimate", {"crop": 8}, dtype=dtype, **changes)


def digests(n):
    return np.frombuffer(
        b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(n)), np.uint8
    ).reshape(n, 32)


def finished(path, values, file_key=None):
    file = create(path.with_suffix(".partial"), file_key or key(str(values.dtype)),
                  digests(len(values)), values.shape[1])  # fmt: skip
    file.write(np.arange(len(values)), values)
    file.finish(path)
    return path


arrays = st.sampled_from(["float32", "float16"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, st.tuples(st.integers(1, 30), st.integers(1, 9)),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=int(dtype[5:])),
    )
)  # fmt: skip


@given(arrays, st.randoms(use_true_random=False))
def test_any_shape_and_dtype_reads_back_in_any_order(tmp_path_factory, values, rng):
    folder = tmp_path_factory.mktemp("file")
    with create(folder / "x", key(str(values.dtype)), digests(len(values)), values.shape[1]) as new:
        order = rng.sample(range(len(values)), len(values))
        for start in range(0, len(order), 4):
            rows = np.array(order[start : start + 4])
            new.write(rows, values[rows])
        new.finish(folder / "x.h5")
    with FeatureFile(folder / "x.h5") as file:
        assert file.complete
        assert (len(file), file.dim, file.key) == (*values.shape, key(str(values.dtype)))
        wanted = np.array(rng.choices(range(len(values)), k=rng.randrange(50)), np.intp)
        for rows in (np.arange(len(values)), wanted):
            out = np.empty((len(rows), file.dim), values.dtype)
            file.read(rows, out)
            assert out.tobytes() == values[rows].tobytes()
        assert file.good().all()


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_reading_in_pieces_gives_the_same(tmp_path, monkeypatch, step):
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    path = finished(tmp_path / "x.h5", values)
    monkeypatch.setattr(module, "_AT_ONCE", 3 * step)
    rng = np.random.default_rng(1)
    with FeatureFile(path) as file:
        assert file.good().all()
        for rows in (np.arange(50), rng.permutation(50), rng.integers(0, 50, 80), np.array([49])):
            out = np.full((len(rows), 3), np.nan, np.float32)
            file.read(rows, out)
            np.testing.assert_array_equal(out, values[rows])
        wide = np.zeros((50, 5), np.float32)
        file.read(np.arange(50)[::-1], wide[:, 1:4])
        np.testing.assert_array_equal(wide[:, 1:4], values[::-1])
        assert not wide[:, [0, 4]].any()


def test_plain_h5py_reads_it(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    with h5py.File(finished(tmp_path / "x.h5", values)) as file:
        np.testing.assert_array_equal(file["features"][...], values)
        np.testing.assert_array_equal(file["sha256"][...], digests(4))
        assert file["done"][...].tolist() == [1, 1, 1, 1]
        assert file["checksum"][2] == zlib.crc32(digests(4)[2].tobytes() + values[2].tobytes())
        assert json.loads(file.attrs["key"])["backbone"] == "net"
        assert file.attrs["complete"]
        for name in ("features", "sha256", "done", "checksum"):
            assert file[name].chunks is None  # contiguous
            assert file[name].id.get_offset() is not None  # and has its place
        layout = file["features"].id.get_create_plist()
        assert layout.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY


def test_space_is_taken_when_the_file_is_created(tmp_path):
    create(tmp_path / "x", key(), digests(100), 50).close()
    assert (tmp_path / "x").stat().st_size > 100 * 50 * 4


def test_digests_and_hex_are_inverse():
    known = digests(5)
    assert to_hex(known) == [hashlib.sha256(bytes([i, 0])).hexdigest() for i in range(5)]
    np.testing.assert_array_equal(to_digests(np.array(to_hex(known))), known)
    assert to_digests(np.array([], np.str_)).shape == (0, 32)


def test_checksum_sees_the_digest_and_every_value():
    values = np.ones((2, 3), np.float32)
    both = digests(2)
    assert checksums(both, values)[0] != checksums(both[::-1], values)[0]
    changed = values.copy()
    changed[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    assert (checksums(both, values) != checksums(both, changed)).tolist() == [False, True]


def test_rows_are_done_only_when_they_are_written(tmp_path):
    with create(tmp_path / "x", key(), digests(4), 2) as file:
        assert not file.done().any()
        file.write(np.array([3, 1]), np.array([[3, 3], [1, 1]], np.float32))
        assert file.done().tolist() == [False, True, False, True]
        assert file.good().tolist() == [False, True, False, True]
        out = np.empty((2, 2), np.float32)
        file.read(np.array([1, 3]), out)
        assert out.tolist() == [[1, 1], [3, 3]]
        file.undo(np.array([3]))
        assert file.done().tolist() == [False, True, False, False]
    assert not FeatureFile(tmp_path / "x").complete


def test_finish_refuses_rows_that_were_not_written(tmp_path):
    with create(tmp_path / "x", key(), digests(4), 2) as file:
        file.write(np.array([0, 1]), np.zeros((2, 2), np.float32))
        with pytest.raises(CacheRefused, match="2 of 4 rows were not written"):
            file.finish(tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finish_refuses_nan_and_infinity_and_names_the_image(tmp_path, bad):
    values = np.zeros((4, 2), np.float32)
    values[2, 1] = bad
    with create(tmp_path / "x", key(), digests(4), 2) as file:
        file.write(np.arange(4), values)
        with pytest.raises(CacheRefused, match=to_hex(digests(4))[2][:12]):
            file.finish(tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_finish_leaves_out_what_could_not_be_embedded(tmp_path):
    file = create(tmp_path / "x", key(), digests(4), 2)
    file.write(np.array([0, 2, 3]), np.array([[0, 0], [2, 2], [3, 3]], np.float32))
    file.annotate({"device": "cpu", "seconds": 1.5})
    file.finish(tmp_path / "x.h5", ~file.done())
    with FeatureFile(tmp_path / "x.h5") as done:
        np.testing.assert_array_equal(done.digests, digests(4)[[0, 2, 3]])
        out = np.empty((3, 2), np.float32)
        done.read(np.arange(3), out)
        assert out[:, 0].tolist() == [0, 2, 3]
        assert done.complete
        assert done.good().all()
        assert done.attributes["device"] == "cpu"
        assert done.attributes["seconds"] == 1.5
        assert done.attributes["complete"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def edit(path, **attributes):
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[name] = value


def foreign(path):
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((3, 2))


def without(name):
    def change(path):
        with h5py.File(path, "r+") as file:
            del file[name]

    return change


def replaced(name, value):
    def change(path):
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "no HDF5 file or cut short"),
        (lambda p: p.write_text("features,1,2\n"), "no HDF5 file or cut short"),
        (lambda p: p.write_bytes(p.read_bytes()[:-200]), "no HDF5 file or cut short"),
        (lambda p: p.write_bytes(p.read_bytes()[:1000]), "no HDF5 file or cut short"),
        (foreign, "not written by featcache"),
        (lambda p: edit(p, key="nonsense"), "no readable key"),
        (lambda p: edit(p, key=np.arange(3)), "no readable key"),
        (lambda p: edit(p, key=key(format=FORMAT + 1).json()), "a newer featcache"),
        (without("features"), "is damaged: .*features"),
        (without("sha256"), "is damaged: .*sha256"),
        (without("done"), "is damaged: .*done"),
        (replaced("checksum", np.zeros(2, np.uint32)), "'checksum' is of another shape"),
        (replaced("features", np.zeros(4, np.float32)), "is damaged"),
        (replaced("features", np.zeros((4, 3))), "is of another shape or type"),
        (replaced("sha256", np.zeros((4, 20), np.uint8)), "is of another shape or type"),
    ],
)  # fmt: skip
def test_what_is_no_feature_file_is_refused(tmp_path, damage, message):
    path = finished(tmp_path / "x.h5", np.ones((4, 3), np.float32))
    damage(path)
    with pytest.raises(CacheRefused, match=message) as caught:
        FeatureFile(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        FeatureFile(tmp_path / "none.h5")


def places(path, whole):
    """Offsets of the bytes to damage: those of the datasets, or every one."""
    if whole:
        return list(range(path.stat().st_size))
    with h5py.File(path) as file:
        sets = [file[name] for name in ("features", "sha256", "done", "checksum")]
        return [s.id.get_offset() + i for s in sets for i in range(s.nbytes)]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused_or_seen_by_the_checksum_or_harmless(tmp_path, whole):
    """Whatever bit flips: no crash, and no row that passes for good and is not."""
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    path, rng = finished(tmp_path / "x.h5", values), random.Random(0)
    content, where = path.read_bytes(), places(path, whole)
    # Not many more: libhdf5 itself (1.14) can hang over an attribute with a flipped bit.
    for _ in range(300):
        data = bytearray(content)
        data[rng.choice(where)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            with FeatureFile(path) as file:
                good = np.flatnonzero(file.good())
                if len(file) == 4 and file.dim == 3 and file.key == key():
                    out = np.empty((len(good), 3), np.float32)
                    file.read(good, out)
                    np.testing.assert_array_equal(out, values[good])
                    np.testing.assert_array_equal(file.digests[good], digests(4)[good])
        except CacheRefused:
            assert whole


# Damaged rows are found while features are loaded, named, and refused.


def rows(n: int, width: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * 1000 + width)
    digests = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    features = rng.standard_normal((n, width)).astype(dtype)
    return digests, features, checksums(digests, features)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 2500), st.integers(1, 9), st.sampled_from(["float32", "float16"]),
    st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), max_size=3),
)  # fmt: skip
def test_flipped_bits_are_found_where_they_are(
    n: int, width: int, dtype: str, flips: list[tuple[float, int]]
) -> None:
    digests, features, stored = rows(n, width, dtype)
    content = features.view(np.uint8).reshape(-1)
    for where, bit in flips:
        content[int(where * len(content))] ^= 1 << bit
    expected = np.flatnonzero(checksums(digests, features) != stored)
    assert damaged_rows(digests, features, stored).tolist() == expected.tolist()


def _swap(i: int, j: int) -> Callable[[np.ndarray], None]:
    def swap(values: np.ndarray) -> None:
        values[[i, j]] = values[[j, i]]

    return swap


def _flip(which: slice) -> Callable[[np.ndarray], None]:
    def flip(values: np.ndarray) -> None:
        values.view(np.uint32)[which, 3] ^= 1 << 20

    return flip


@pytest.mark.parametrize(
    "damage",
    [_swap(0, 1), _swap(0, 33), _swap(5, 1998), _swap(40, 41), _flip(slice(0, 2)),
     _flip(slice(0, 100, 33)), _flip(slice(None)), _flip(slice(None, None, 2)),
     _flip(slice(None, None, 4)), _flip(slice(3, None, 8)),
     lambda values: values[100:200].fill(0), lambda values: values[:].fill(0),
     lambda values: values.__setitem__(slice(None), values[::-1].copy())],
)  # fmt: skip
def test_damage_that_sums_could_hide_is_found(damage: Callable[[np.ndarray], None]) -> None:
    digests, features, stored = rows(2000, 8, "float32")
    damage(features)
    expected = np.flatnonzero(checksums(digests, features) != stored)
    assert len(expected) > 1
    assert damaged_rows(digests, features, stored).tolist() == expected.tolist()


def test_another_digest_or_checksum_is_damage_too() -> None:
    digests, features, stored = rows(100, 8, "float32")
    digests[7, 30] ^= 1
    stored[50] += 1
    assert damaged_rows(digests, features, stored).tolist() == [7, 50]


def test_of_whole_rows_only_the_sums_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    digests, features, stored = rows(10_000, 8, "float32")
    seen = []

    def count(digests: np.ndarray, features: np.ndarray) -> np.ndarray:
        seen.append(len(features))
        return checksums(digests, features)

    monkeypatch.setattr(module, "checksums", count)
    assert not len(damaged_rows(digests, features, stored))
    assert sum(seen) < 0.1 * len(features)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_damaged_row_is_named_with_its_image_and_refused(tmp_path: Path, lazy: bool) -> None:
    X, y = blobs(60)
    cache, images = store(tmp_path, X, y, (6, 4), "float16", views=("hflip",))
    entry = cache.choose("toy", ["net1"])[0]
    with h5py.File(entry.path, "r+") as file:
        sha256 = file["sha256"][17].tobytes().hex()
        offset = file["features"].id.get_offset() + (17 * 4 + 2) * 2
    content = bytearray(entry.path.read_bytes())
    content[offset] ^= 4
    entry.path.write_bytes(content)
    damaged = int(np.flatnonzero(images.sha256 == sha256)[0])

    with pytest.raises(CacheRefused) as caught:
        _ = cache.features(images, cache.choose("toy"), ["hflip"], lazy=lazy).X[:]
    assert f"{entry.path} is damaged: 1 row " in caught.value.problem
    assert f"(row 17: {images.ids[damaged]})" in caught.value.problem
    assert caught.value.remedy.startswith(
        f"featcache cache verify --repair --data toy --cache {tmp_path}\nfeatcache extract "
    )
    others = cache.features(images, cache.choose("toy", ["net0"]), lazy=lazy)
    assert len(others.X[:]) == 60
    if lazy:  # rows that are not asked for are none of a reader's business
        some = cache.features(images, cache.choose("toy"), lazy=True)
        assert some.X[np.delete(np.arange(60), damaged)].shape == (59, 10)
