"""Locks, full disks and folders that can't be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import pytest
from tiny import tiny_backbone, tiny_images

from featcache.atomic import guard_writes, replacing
from featcache.errors import CacheBusy, CacheUnwritable, RecipeError
from featcache.extraction.extract import fill_cache
from featcache.store.cache import Cache
from featcache.store.locking import LOCK_VARIABLE, lock, new_part

KEY = tiny_backbone().key()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_two_writers_of_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, kind)
    cache = Cache(tmp_path)
    with (
        lock(cache, "tiny", KEY),
        pytest.raises(CacheBusy, match="--wait") as caught,
        lock(cache, "tiny", KEY),
    ):
        pass
    assert caught.value.exit_code == 4
    with lock(cache, "tiny", KEY):
        pass


def test_another_file_is_free(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with lock(cache, "tiny", KEY), lock(cache, "tiny", tiny_backbone("other").key()):
        pass


def test_unknown_kind_of_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, "none")
    with pytest.raises(RecipeError, match="hard or soft"), lock(Cache(tmp_path), "tiny", KEY):
        pass


def test_a_file_system_without_locks_is_told_how_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(CacheUnwritable, match=f"{LOCK_VARIABLE}=soft"), \
            lock(Cache(tmp_path), "tiny", KEY):  # fmt: skip
        pass


def test_too_small_a_disk_is_said_before_the_first_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    calls: list[int] = []
    with pytest.raises(CacheUnwritable, match="free"):
        fill_cache(
            tiny_images(8), backbone=tiny_backbone(called=calls.append), cache=tmp_path,
            batch_size=4,
        )  # fmt: skip
    assert len(calls) == 1  # the probe for the width


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever write fails: one clear error, and a rerun finishes the rest."""
    original = h5py.File.flush
    flushed = [0]

    def flush(self: h5py.File) -> None:
        flushed[0] += 1
        if flushed[0] == 6:
            raise OSError(28, "No space left on device")
        original(self)

    monkeypatch.setattr(h5py.File, "flush", flush)
    images = tiny_images(16)
    with pytest.raises(CacheUnwritable, match="the disk is full"):
        fill_cache(images, backbone=tiny_backbone(), cache=tmp_path, batch_size=4)
    monkeypatch.undo()
    report = fill_cache(images, backbone=tiny_backbone(), cache=tmp_path, batch_size=4)
    assert 0 < report.outcomes[0].computed < 16
    assert report.outcomes[0].rows == 16


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, as root on Linux"
)
def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("this system lets nobody mount a disk")
    try:
        (disk / "filler").write_bytes(b"0" * 190_000)
        images = tiny_images(100)
        wide = tiny_backbone(dim=256)
        with pytest.raises(CacheUnwritable, match="free"):
            fill_cache(images, backbone=wide, cache=disk / "cache", batch_size=4)
        (disk / "filler").unlink()
        report = fill_cache(images, backbone=wide, cache=disk / "cache", batch_size=4)
        assert report.outcomes[0].rows == 100
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_part_that_a_kill_left_half_written_goes_with_the_parts(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    part = new_part(cache, "tiny", KEY, 0, 7)
    part.parent.mkdir()
    with replacing(part) as temporary:
        temporary.write_bytes(b"half")
    part.rename(temporary)  # as a kill before the end of the block leaves it
    fill_cache(tiny_images(8), backbone=tiny_backbone(), cache=tmp_path)
    assert [path for path in part.parent.glob(".*") if path.suffix != ".lock"] == []


def test_no_permission_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CacheUnwritable, match="--cache"), guard_writes(tmp_path):
        raise PermissionError(13, "Permission denied", str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(CacheUnwritable, match="permission"):
        fill_cache(tiny_images(4), backbone=tiny_backbone(), cache=tmp_path / "cache")


def test_a_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(CacheUnwritable, match="--cache"):
        fill_cache(tiny_images(4), backbone=tiny_backbone(), cache=tmp_path / "cache")


def test_readers_go_on_while_a_writer_extends(tmp_path: Path) -> None:
    fill_cache(tiny_images(8), backbone=tiny_backbone(), cache=tmp_path, batch_size=4)
    cache = Cache(tmp_path)
    seen: list[int] = []

    def read_meanwhile(_: int) -> None:
        seen.append(len(cache.features(tiny_images(8), cache.choose("tiny"))))

    fill_cache(
        tiny_images(24), backbone=tiny_backbone(called=read_meanwhile), cache=tmp_path,
        batch_size=4,
    )  # fmt: skip
    assert set(seen) == {8}
    assert len(cache.features(tiny_images(24), cache.choose("tiny"))) == 24
