"""`verify --repair` takes damaged files out of use, and throws nothing away."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from stored import blobs, store

from featcache.store.cache import Cache
from featcache.store.feature_file import Digests, FeatureFile, to_digests
from featcache.store.key import Key
from featcache.store.locking import begin
from featcache.store.maintenance import repair, verify

FINISHED, WANTED, DONE = 30, 60, 52


def digests_of(rows: np.ndarray) -> Digests:
    return to_digests(np.array([f"{row * 7919 + 1:064x}" for row in rows]))


def vectors(digests: Digests) -> np.ndarray:
    return digests[:, -6:].astype(np.float32)


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Cache, Key, Path]:
    """A finished file of 30 rows with one damaged, and an interrupted one of 60 with 52 done."""
    X, y = blobs(FINISHED, (6,))
    X[:] = vectors(digests_of(np.arange(FINISHED)))
    cache, _ = store(tmp_path / "cache", X, y, (6,))
    (path,) = (cache.folder / "toy").glob("net0.*.h5")
    with FeatureFile(path) as file:
        key = file.key
    with begin(cache, "toy", key, digests_of(np.arange(WANTED)), 6) as file:
        todo = np.flatnonzero(~file.done())[: DONE - FINISHED]
        file.write(todo, vectors(file.digests[todo]))
    with h5py.File(path, "r+") as file:
        file["features"][3, 2] += 1
    return cache, key, path


def all_rows_are_right(file: FeatureFile) -> bool:
    rows = np.flatnonzero(file.done())
    out = np.empty((len(rows), 6), np.float32)
    file.read(rows, out)
    return np.array_equal(out, vectors(file.digests[rows]))


def repaired(cache: Cache) -> None:
    for finding in verify(cache, "toy"):
        if finding.problem:
            repair(finding)


@pytest.mark.parametrize("wanted", [WANTED, 40], ids=["the same", "fewer"])
def test_what_an_interrupted_extraction_has_done_is_kept(
    grown: tuple[Cache, Key, Path], wanted: int
) -> None:
    cache, key, path = grown
    repaired(cache)
    assert not path.exists()
    for _ in range(2):  # killed, and begun again
        with begin(cache, "toy", key, digests_of(np.arange(wanted)), 6) as file:
            assert int(file.done().sum()) == DONE
            assert all_rows_are_right(file)


def test_repairing_twice_keeps_both(grown: tuple[Cache, Key, Path]) -> None:
    cache, key, path = grown
    before = path.read_bytes()
    repaired(cache)
    path.write_bytes(before)
    repaired(cache)
    with begin(cache, "toy", key, digests_of(np.arange(WANTED)), 6) as file:
        assert int(file.done().sum()) == DONE


def test_a_file_set_aside_replaces_none(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "toy"
    folder.mkdir(parents=True)
    for text in ("one", "two", "three"):
        (folder / "x.h5").write_text(text)
        repaired(Cache(tmp_path / "cache"))
    kept = {path.name: path.read_text() for path in folder.glob("*.damaged")}
    assert kept == {"x.h5.damaged": "one", "x.h5.2.damaged": "two", "x.h5.3.damaged": "three"}
