"""A cache that others work in, or that may only be read."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from tiny import tiny_backbone, tiny_images

from featcache.atomic import replacing
from featcache.cli import main
from featcache.errors import CacheUnwritable
from featcache.extraction.extract import fill_cache
from featcache.images import manifest
from featcache.images.sources import open_images
from featcache.store import failures
from featcache.store.cache import Cache
from featcache.store.maintenance import choose_victims, delete


def test_prune_leaves_what_is_being_written(tmp_path: Path) -> None:
    images = tiny_images()
    fill_cache(images, backbone=tiny_backbone(), cache=tmp_path)
    cache = Cache(tmp_path)
    folder = tmp_path / images.name
    killed = folder / ".failed.csv.1-1.tmp"
    killed.write_bytes(b"half")
    yesterday = time.time() - 86_400
    os.utime(killed, (yesterday, yesterday))
    with replacing(folder / "images.csv") as temporary:
        temporary.write_bytes((folder / "images.csv").read_bytes())
        gone = delete(choose_victims(cache, [images.name]))
    assert [victim.path for victim in gone] == [killed]


def test_prune_bears_that_a_file_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images()
    fill_cache(images, backbone=tiny_backbone(), cache=tmp_path)
    there = tmp_path / images.name / ".x.h5.partial"
    monkeypatch.setattr("featcache.store.maintenance._leftovers", lambda *_: [there])
    assert choose_victims(Cache(tmp_path), [images.name]) == []


def test_what_a_killed_process_left_goes_when_the_same_is_written_again(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "kept").write_text("")
    old, link, new = (tmp_path / f".a[1].csv.{name}.tmp" for name in ("1-1", "2-2", "3-3"))
    old.mkdir()
    (old / "half").write_text("")
    link.symlink_to(secret)
    new.write_text("")
    yesterday = time.time() - 86_400
    for path in (old, link):
        os.utime(path, (yesterday, yesterday), follow_symlinks=False)
    with replacing(tmp_path / "a[1].csv") as temporary:
        temporary.write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "a[1].csv", "secret"]
    assert (secret / "kept").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_a_wrong_path(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "reports/x")

    monkeypatch.setattr(main.cli, "main", full)
    assert main.run(["fit"]) == 1
    assert "Free some space and run the same command again" in capsys.readouterr().err


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(manifest, "replacing", refuse)
    monkeypatch.setattr(failures, "write_csv", refuse)


def test_what_is_cached_needs_no_right_to_write(
    tmp_path: Path, pictures: Path, request: pytest.FixtureRequest
) -> None:
    (pictures / "cat" / "broken.png").write_bytes(b"no image")
    images = open_images(pictures, cache=None)
    fill_cache(images, backbone=tiny_backbone(), cache=tmp_path / "cache")
    request.getfixturevalue("read_only")
    report = fill_cache(images, backbone=tiny_backbone(), cache=tmp_path / "cache")
    assert (report.computed, len(report.failed)) == (0, 1)
    (pictures / "cat" / "00.png").rename(pictures / "dog" / "00.png")
    with pytest.raises(CacheUnwritable, match="Read-only"):
        fill_cache(
            open_images(pictures, cache=None), backbone=tiny_backbone(), cache=tmp_path / "cache"
        )
