"""Parts that travel through a URL, because workers share no folder with the command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from featcache.cli.main import run
from featcache.errors import ClusterError
from featcache.extraction.extract import ExtractionContext, fill_cache
from featcache.images.sources import open_images
from featcache.scaling import worker
from featcache.scaling.cluster import Cluster
from featcache.scaling.executors import embed_on
from featcache.scaling.plan import Plan, make_plan
from featcache.scaling.scheduler import PartMerger, RangeScheduler
from featcache.scaling.transport import ObjectStore, open_transport
from featcache.store.feature_file import FeatureFile
from featcache.store.key import Key, read_key

from .extracting import contents
from .machines import Machines

pytest.importorskip("fsspec")

ONE: dict[str, Any] = {
    "backbone": "squeezenet1_1", "weights": "random:0", "image_size": 32, "batch_size": 4,
    "workers": 1, "device": "cpu", "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes of it."""
    cache = tmp_path_factory.mktemp("alone")
    fill_cache(open_images(photos, cache=cache), cache=cache, view="hflip", **ONE)
    return cache


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path}/bucket"


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder under a path that other processes can't follow."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Path("/proc/self/cwd/cache")


class Caught(Exception):
    pass


def plan_for(data: Path, cache: Path, url: str) -> tuple[Plan, ExtractionContext]:
    """The plan of an extraction that stops where the cluster would begin."""
    made: list[tuple[Plan, ExtractionContext]] = []

    def embed(context: ExtractionContext) -> None:
        made.append((make_plan(context, None, 1, url), context))
        raise Caught

    with pytest.raises(Caught):
        fill_cache(open_images(data, cache=cache), cache=cache, embed=embed, **ONE)
    return made[0]


def span_of(context: ExtractionContext, rows: list[int]) -> dict[str, Any]:
    images = context.unique.images
    return {"first": rows[0], "last": rows[-1], "ids": images.ids[rows].tolist(),
            "sha256": images.sha256[rows].tolist(), "needs": [list(range(len(rows)))]}  # fmt: skip


def objects(url: str) -> list[str]:
    return sorted(path.name for path in Path(url.removeprefix("file://")).iterdir())


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("*/.*") if not path.name.endswith(".lock")]


def test_workers_need_no_folder_of_the_command_s(
    machines: Machines, photos: Path, alone: Path, hidden: Path, url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Images and parts at URLs, the cache where no worker sees it: the same bits."""
    Path(url.removeprefix("file://"), "photos.other").write_text("somebody else's")
    with Cluster(str(machines.file)) as cluster:
        images = open_images(f"file://{photos}", cache=hidden)
        embed = embed_on(cluster, size=8, parts=url)
        report = fill_cache(images, cache=hidden, embed=embed, view="hflip", **ONE)
    assert contents(hidden) == contents(alone)
    assert len(contents(hidden)) == 2
    assert len(report.failed) == 2
    assert leftovers(hidden) == []
    assert objects(url) == ["photos.other"]
    assert "gets nothing to do" not in caplog.text


def test_without_it_they_are_refused(
    machines: Machines, photos: Path, hidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.scaling.scheduler._GRACE", 0.0)
    with Cluster(str(machines.file)) as cluster, pytest.raises(ClusterError, match="--parts"):
        fill_cache(open_images(photos), cache=hidden, embed=embed_on(cluster), **ONE)


def test_the_command(machines: Machines, photos: Path, tmp_path: Path, url: str) -> None:
    words = ["extract", "--data", f"file://{photos}", "--cache", str(tmp_path / "c"), "--backbone",
             "squeezenet1_1", "--weights", "random:0", "--image-size", "32", "-q"]  # fmt: skip
    assert run([*words, "--dask", str(machines.file), "--parts", url]) == 3
    assert run([*words, "--parts", url]) == 2
    assert run([*words, "--dask", str(machines.file), "--parts", "/a/folder"]) == 2


def test_a_killed_worker_s_range_is_done_again(
    machines: Machines, photos: Path, alone: Path, tmp_path: Path, url: str
) -> None:
    killed = []

    def kill(done: int, total: int) -> None:
        if not killed and 0 < done < total:
            machines.kill_worker(1)
            killed.append(done)
            (begun, *_) = tmp_path.glob("photos/.*.h5.partial")
            name = begun.name.removesuffix(".partial") + ".part-0-7.ab12.partial"
            Path(url.removeprefix("file://"), f"photos{name}").write_text("too late, and torn")

    with Cluster(str(machines.file)) as cluster:
        fill_cache(
            open_images(photos, cache=tmp_path), cache=tmp_path, progress=kill, view="hflip",
            embed=embed_on(cluster, size=8, parts=url), **ONE,
        )  # fmt: skip
    assert killed
    assert contents(tmp_path) == contents(alone)
    assert objects(url) == []


def test_what_an_earlier_command_left_is_taken_over(
    photos: Path, alone: Path, tmp_path: Path, url: str
) -> None:
    """All of it, here: so that no cluster is needed any more."""
    good = tmp_path / "photos"
    shutil.copytree(photos, good)
    for name in ("cat/30.png", "owl/71.png"):
        (good / name).unlink()
    plan, context = plan_for(good, tmp_path / "cache", url)
    pending = context.pending()
    for rows in (pending[:40], pending[40:]):
        assert worker.embed_range(plan.json(), span_of(context, rows))["refused"] == ""
    assert len(objects(url)) == 2
    assert not list(tmp_path.glob("cache/photos/.*part-*"))  # it wrote nothing there
    with Cluster("tcp://127.0.0.1:9") as nobody:
        embed = embed_on(nobody, parts=url)
        images = open_images(good, cache=tmp_path / "cache")
        fill_cache(images, cache=tmp_path / "cache", embed=embed, **ONE)
    assert objects(url) == []
    assert leftovers(tmp_path / "cache") == []
    ((name, vectors),) = contents(tmp_path / "cache").items()
    assert contents(alone)[name] == vectors


def test_damaged_vectors_are_made_again(
    machines: Machines, photos: Path, alone: Path, tmp_path: Path, url: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    plain, damaged = ObjectStore.fetch, []

    def fetch(self: ObjectStore, name: str) -> Path:
        path = plain(self, name)
        if not damaged:
            with h5py.File(path, "r+") as file:  # one row came out torn
                file["features"][4] = 0.0
        if len(damaged) == 1:
            path.write_bytes(path.read_bytes()[:500])
        damaged.append(name)
        return path

    monkeypatch.setattr(ObjectStore, "fetch", fetch)
    with Cluster(str(machines.file)) as cluster:
        fill_cache(open_images(photos), cache=tmp_path, embed=embed_on(cluster, size=8, parts=url),
                   view="hflip", **ONE)  # fmt: skip
    assert contents(tmp_path) == contents(alone)
    assert "vectors came back damaged" in caplog.text


def packed(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    packed = file.create_dataset("features", shape, "f4", chunks=shape, compression="gzip")
    packed.id.write_direct_chunk((0, 0), b"what can't be unpacked")


def huge(file: h5py.File) -> None:
    for name, row, dtype in (("features", (1000,), "f4"), ("sha256", (32,), "u1"),
                             ("done", (), "u1"), ("checksum", (), "u4")):  # fmt: skip
        del file[name]
        file.create_dataset(name, (2**40, *row), dtype, chunks=(2**10, *row))


def twice(file: h5py.File) -> None:
    for name in list(file):
        rows = file[name][...]
        del file[name]
        file.create_dataset(name, data=rows[[*range(len(rows)), *range(len(rows))]])


@pytest.mark.parametrize(("change", "left"), [(packed, 3), (huge, 3), (twice, 0)])
def test_parts_that_no_worker_would_write(
    photos: Path, tmp_path: Path, url: str, change: Callable[[h5py.File], None], left: int
) -> None:
    plan, context = plan_for(photos, tmp_path, url)
    rows = context.pending()[:3]
    assert worker.embed_range(plan.json(), span_of(context, rows))["refused"] == ""
    (part,) = Path(url.removeprefix("file://")).iterdir()
    with h5py.File(part, "r+") as file:
        change(file)
    (file,) = context.files
    file.features = FeatureFile(file.features.path, writable=True)
    with file.features:
        transport = open_transport(url, tmp_path, "photos")
        PartMerger(transport, context.unique.images, [file]).take_left(rows)
    assert len(set(rows) & set(file.pending)) == left
    assert objects(url) == []


def test_a_worker_that_may_not_write_there_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan, context = plan_for(photos, tmp_path / "cache", f"file://{tmp_path}/file/in")
    assert "can't be used" in worker.check(plan.json())["refused"]
    with Cluster("tcp://127.0.0.1:9") as nobody, pytest.raises(ClusterError, match="can't be used"):
        embed_on(nobody, parts=plan.parts_at)(context)


def test_a_worker_that_can_no_longer_hand_over_is_refused(
    photos: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its range is then another's; not the end of it all."""
    plan, context = plan_for(photos, tmp_path, url)

    def full(*_: object) -> None:
        raise PermissionError("quota exceeded")

    assert worker.check(plan.json())["refused"] == ""
    monkeypatch.setattr("featcache.images.remote.UrlFolder.upload", full)
    said = worker.embed_range(plan.json(), span_of(context, context.pending()[:3]))
    assert "quota exceeded" in said["refused"]
    assert objects(url) == []


def test_a_part_that_is_not_there_after_all(photos: Path, tmp_path: Path, url: str) -> None:
    _, context = plan_for(photos, tmp_path, url)
    (key,) = (task.key for task in context.tasks)
    for where, said in ((url, "another command use the same URL"), ("", "must be one that all")):
        transport = open_transport(where, tmp_path, "photos")
        merger = PartMerger(transport, context.unique.images, context.files)
        with pytest.raises(ClusterError, match=said):
            merger.take([0], [f".{key.stem}.h5.part-0-0.ab.partial"], must=True)


def test_only_parts_of_this_key_are_touched(photos: Path, tmp_path: Path, url: str) -> None:
    plan, _ = plan_for(photos, tmp_path, url)
    key: Key = read_key(plan.parts[0].key, "")
    folder = Path(url.removeprefix("file://"))
    mine = f"photos.{key.stem}.h5.part-0-7.0f.partial"
    others = [
        f"photos.{key.stem}.h5.part-8-x.0f.partial", f"photos.{key.stem}.h5.partial",
        f"photos2.{key.stem}.h5.part-0-7.0f.partial", "photos.other.h5.part-0-7.0f.partial",
        f"{mine}.old", "readme.txt",
    ]  # fmt: skip
    for name in (mine, *others):
        (folder / name).write_text("")
    parts = open_transport(url, tmp_path, "photos")
    assert [f"photos{name}" for name in parts.names(key)] == [mine]
    assert parts.names(key, "0-70") == []
    assert [f"photos{name}" for name in parts.names(key, "0-7")] == [mine]
    parts.check({})
    assert objects(url) == sorted((mine, *others))


def test_a_store_that_gives_back_something_else(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.images.remote.UrlFolder.read", lambda *_: b"")
    with pytest.raises(ClusterError, match="gives back something else"):
        open_transport(url, tmp_path, "photos").check({})


def test_a_range_that_always_comes_back_damaged_is_given_up(photos: Path, tmp_path: Path) -> None:
    plan, context = plan_for(photos, tmp_path, "")
    files = context.files
    merger = PartMerger(open_transport("", tmp_path, "photos"), context.unique.images, files)
    ranges = RangeScheduler(None, plan.json(), context, files, 8, merger)  # type: ignore[arg-type]
    nothing = {"parts": [], "compute": [0.0], "seconds": {}, "problems": [], "hashes": []}
    for _ in range(4):
        ranges._take(ranges._todo.popleft(), nothing)
    with pytest.raises(ClusterError, match="5 workers gave damaged vectors of the images cat"):
        ranges._take(ranges._todo.popleft(), nothing)


def test_the_plan_says_where(photos: Path, tmp_path: Path) -> None:
    plan, _ = plan_for(photos, tmp_path, "s3://bucket/parts")
    assert json.loads(plan.json())["parts_at"] == "s3://bucket/parts"
