"""Images at a URL are those of the folder that was uploaded, and are read as rarely as may be."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from featcache.cli.main import run
from featcache.cli.options import images_as_they_are
from featcache.errors import CacheUnwritable, DataError
from featcache.images import remote
from featcache.images.manifest import read_images_csv, write_images_csv
from featcache.images.remote import (
    Remote,
    UrlFolder,
    check_url,
    is_url,
    mark,
    split_url,
    without_secrets,
)
from featcache.images.sources import find_reader, open_images
from featcache.store.cache import Cache

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(pictures, monkeypatch):
    """A bucket with the pictures, as `flaky://bucket/photos`."""
    from .stores import Flaky

    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))
    remote.pictures_at.cache_clear()
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    fs = fsspec.filesystem("flaky")
    fs.store.clear()
    fs.errors.clear()
    for path in pictures.rglob("*.png"):
        fs.pipe_file(f"/bucket/photos/{path.relative_to(pictures).as_posix()}", path.read_bytes())
    fs.asked.clear()
    return fs


PHOTOS = "flaky://bucket/photos"


def columns(images):
    return {name: getattr(images, name).tolist()
            for name in ("ids", "sha256", "labels", "groups", "split", "size")}  # fmt: skip


def noted(images, cache):
    write_images_csv(cache / images.name / "images.csv", images)
    return images


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_url_is_the_folder(store, pictures, slash):
    images = open_images(PHOTOS + slash, cache=None, group="parent")
    local = open_images(pictures, cache=None, group="parent")
    assert images.name == "photos"
    assert images.root == PHOTOS
    assert columns(images) == columns(local)
    assert [images.read(row) for row in range(12)] == [local.read(row) for row in range(12)]


def test_splits_hidden_objects_and_other_files(store):
    for name in ("train/cat/1.png", "test/cat/2.JPG", "test/.hidden/3.png", "train/cat/.4.png",
                 "train/cat/notes.txt", "train/dog/5.png"):  # fmt: skip
        store.pipe_file(f"/other/{name}", name.encode())
    images = open_images("flaky://other", cache=None)
    assert images.ids.tolist() == ["test/cat/2.JPG", "train/cat/1.png", "train/dog/5.png"]
    assert images.split.tolist() == ["test", "train", "train"]
    assert images.labels.tolist() == ["cat", "cat", "dog"]
    store.pipe_file("/other/train/.x/notes.txt", b"")
    with pytest.raises(DataError, match=r"no images below flaky://other/train/\.x"):
        open_images("flaky://other/train/.x", cache=None)


def test_an_image_in_a_folder_without_a_name(store):
    store.store.clear()
    for path in ("/odd//1.png", "/odd/cat/2.png"):
        file = fsspec.implementations.memory.MemoryFile(store, path, b"1")
        file.commit()
    with pytest.raises(DataError, match=r"in no class folder, for instance /1\.png"):
        open_images("flaky://odd", cache=None)


def test_objects_whose_names_begin_alike_are_others(store, monkeypatch):
    store.pipe_file("/bucket/photos2/cat/1.png", b"1")
    plain = type(store).find
    monkeypatch.setattr(type(store), "find", lambda self, path, **how: plain(self, "/", **how))
    assert len(open_images(PHOTOS, cache=None)) == 12


def test_file_urls(pictures):
    images = open_images(f"file://{pictures}", cache=None)
    assert columns(images) == columns(open_images(pictures, cache=None))


def test_an_unchanged_bucket_is_listed_and_not_read(store, cache):
    noted(open_images(PHOTOS, cache=cache), cache)
    assert store.asked == {"list": 1, "read": 12}
    again = noted(open_images(PHOTOS, cache=cache), cache)
    assert store.asked == {"list": 2, "read": 12}
    store.pipe_file("/bucket/photos/cat/00.png", b"another picture")
    store.pipe_file("/bucket/photos/cat/new.png", b"and a new one")
    changed = open_images(PHOTOS, cache=cache)
    assert store.asked == {"list": 3, "read": 14}
    assert changed.sha256[0] != again.sha256[0]
    open_images(PHOTOS, cache=cache, rehash=True)
    assert store.asked["read"] == 27


def test_what_was_read_for_its_digest_is_not_read_again_at_once(store, cache, monkeypatch):
    images = open_images(PHOTOS, cache=cache)
    first = images.read(3)
    assert store.asked["read"] == 12
    assert images.read(3) == first
    assert store.asked["read"] == 13
    monkeypatch.setattr(remote, "_KEPT", 0)
    open_images(PHOTOS, cache=None).read(3)
    assert store.asked["read"] == 13 + 13


def test_a_table_at_a_url(store, cache):
    table = "path,label,split,group\ncat/00.png,x,train,p1\n./dog/01.png,y,test,p2\n"
    store.pipe_file("/bucket/photos/list.csv", table.encode())
    images = open_images(f"{PHOTOS}/list.csv", cache=None)
    assert images.name == "list"
    assert images.ids.tolist() == ["cat/00.png", "dog/01.png"]
    assert images.split.tolist() == ["train", "test"]
    assert images.groups.tolist() == ["p1", "p2"]
    assert store.asked["list"] == 0  # the bucket may hold any number of others
    assert store.asked["read"] == 3


@pytest.mark.parametrize("few", [0, 256])
def test_a_table_here_of_images_at_a_url(store, tmp_path, cache, monkeypatch, few):
    monkeypatch.setattr(remote, "_FEW", few)
    table = tmp_path / "list.tsv"
    table.write_text("path\tlabel\ncat/00.png\tx\ncat/03.png\ty\n")
    images = open_images(table, data_root=PHOTOS, cache=None)
    assert columns(images)["sha256"] == columns(open_images(PHOTOS, cache=None))["sha256"][:2]
    assert images.root == PHOTOS
    table.write_text("path\tlabel\ncat/00.png\tx\ncat/nothing.png\ty\n")
    assert open_images(table, data_root=PHOTOS, cache=None).absent == ("cat/nothing.png",)
    table.write_text("path\tlabel\ncat/nothing.png\ty\n")
    with pytest.raises(DataError, match=r"1 of 1 image file not below flaky.*nothing\.png"):
        open_images(table, data_root=PHOTOS, cache=None)


def test_a_folder_is_no_image(store, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,label\ncat/00.png,x\ncat,y\n")
    assert open_images(table, data_root=PHOTOS, cache=None).absent == ("cat",)


def test_a_table_at_the_top_is_not_looked_for_here(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flaky:").mkdir()
    (tmp_path / "flaky:" / "list.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="no bucket or folder"):
        open_images("flaky://list.csv", cache=None)


def test_parquet_at_a_url(store):
    pytest.importorskip("pyarrow")
    import io

    import pandas as pd

    file = io.BytesIO()
    pd.DataFrame({"path": ["cat/00.png"], "label": ["x"]}).to_parquet(file)
    store.pipe_file("/lists/a.parquet", file.getvalue())
    assert len(open_images("flaky://lists/a.parquet", data_root=PHOTOS, cache=None)) == 1


def test_urls_in_a_table_are_refused(tmp_path):
    (tmp_path / "list.csv").write_text(f"path,label\n{PHOTOS}/cat/00.png,x\n")
    with pytest.raises(DataError, match="1 of its paths are URLs"):
        open_images(tmp_path / "list.csv", cache=None)


class TestFaults:
    def test_that_pass_are_not_seen(self, store):
        store.errors["/bucket/photos/cat/00.png"] = [OSError("reset"), TimeoutError("slow")]
        images = open_images(PHOTOS, cache=None)
        assert images.mtime_ns.all()
        assert store.asked["read"] == 14

    def test_of_one_image_are_listed_and_cost_exit_3(self, store, cache, capsys):
        """…and the next run reads that image again."""
        store.errors["/bucket/photos/cat/03.png"] = [OSError("no route to host")] * 4
        words = ["extract", "--data", PHOTOS, "--cache", str(cache), "--backbone", "squeezenet1_1",
                 "--weights", "random:0", "--image-size", "32", "-q"]  # fmt: skip
        assert run(words) == 3
        said = capsys.readouterr()
        assert "11 vectors" in said.out
        assert "cat/03.png: can't be read: it could not be read when" in said.err
        assert "no route to host" in (cache / "photos" / "failed.csv").read_text()
        assert run(words) == 0
        assert "12 vectors, 1 computed" in capsys.readouterr().out
        assert not (cache / "photos" / "failed.csv").exists()

    def test_an_object_that_vanishes_is_one_failure(self, store, cache, monkeypatch):
        plain = Remote.list_images

        def list_and_lose(self):
            found = plain(self)
            store.rm_file("/bucket/photos/dog/01.png")
            return found

        monkeypatch.setattr(Remote, "list_images", list_and_lose)
        images = open_images(PHOTOS, cache=cache)
        row = images.ids.tolist().index("dog/01.png")
        assert images.mtime_ns[row] == 0
        assert len(images.distinct()) == 12
        with pytest.raises(OSError, match="could not be read when the images were listed"):
            images.read(row)

    def test_one_that_vanishes_later_is_too(self, store, cache):
        noted(open_images(PHOTOS, cache=cache), cache)
        images = open_images(PHOTOS, cache=cache)
        store.rm_file("/bucket/photos/cat/00.png")
        with pytest.raises(OSError, match="00"):
            images.read(0)

    def test_of_some_do_not_stop_it(self, store, monkeypatch):
        monkeypatch.setattr(remote, "_IN_A_ROW", 2)
        monkeypatch.setattr(remote, "_THREADS", 1)
        for name in sorted(store.store)[::2]:
            store.errors[name] = [PermissionError("Forbidden")]
        images = open_images(PHOTOS, cache=None)
        assert len(images.distinct()) == 12  # no two of them are taken for one
        assert (images.mtime_ns == 0).tolist() == [True, False] * 6

    def test_of_all_stop_it(self, store, monkeypatch):
        monkeypatch.setattr(remote, "_IN_A_ROW", 5)
        for name in list(store.store):
            store.errors[name] = [PermissionError("Forbidden")]
        with pytest.raises(DataError, match=r"5 images one after another.*Forbidden"):
            open_images(PHOTOS, cache=None)

    @pytest.mark.parametrize(
        ("error", "said"),
        [(PermissionError("Access Denied"), "can't be listed: Access Denied"),
         (OSError("no route"), "can't be listed: no route"),
         (FileNotFoundError("bucket"), "is not there")],
    )  # fmt: skip
    def test_of_listing(self, store, monkeypatch, error, said):
        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(type(store), "find", refuse)
        with pytest.raises(DataError, match=said) as caught:
            open_images(PHOTOS, cache=None)
        assert "credentials" in caught.value.remedy

    def test_no_such_bucket(self, store):
        with pytest.raises(DataError, match="flaky://none is not there"):
            open_images("flaky://none", cache=None)
        with pytest.raises(DataError, match=r"there is no flaky://none/list\.csv"):
            open_images("flaky://none/list.csv", cache=None)


def test_what_web_servers_can_t_do():
    pytest.importorskip("aiohttp")
    with pytest.raises(DataError, match="can't be listed") as caught:
        open_images("https://example.org/photos", cache=None)
    assert "--data-root https://example.org/photos" in caught.value.remedy


def test_odd_names_on_a_web_server(tmp_path):
    """No query can be smuggled in by a table either."""
    pytest.importorskip("aiohttp")
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    names = ["a#1.png", "a?b=c.png", "a b.png", "ü.png"]
    (tmp_path / "a").write_text("another")
    for name in names:
        (tmp_path / name).write_text(name)
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "".join(f"{name},x\n" for name in names))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        images = open_images(table, data_root=root, cache=None)
        assert [images.read(row).decode() for row in range(4)] == names
        server.shutdown()


def test_a_broken_image_costs_itself_and_bombs_do_not_go_off(store, cache, capsys):
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    store.pipe_file(
        "/bucket/photos/cat/bomb.png", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IEND", b"")
    )
    store.pipe_file("/bucket/photos/cat/none.png", b"no image")
    words = ["extract", "--data", PHOTOS, "--cache", str(cache), "--backbone", "squeezenet1_1",
             "--weights", "random:0", "--image-size", "32", "-q"]  # fmt: skip
    assert run(words) == 3
    assert "2 images failed" in capsys.readouterr().err


class TestMark:
    def test_it_changes_with_the_object(self):
        assert mark({"ETag": "a", "LastModified": 1.0}, 2.0) == mark({"ETag": "a"}, 9.0)
        assert mark({"ETag": "a"}, 9.0) != mark({"ETag": "b"}, 9.0)
        assert 0 < mark({"ETag": "a"}, 9.0) < 2**63

    def test_a_time_of_just_now_is_not_trusted(self):
        now = time.time()
        assert mark({"mtime": now - 60}, now) != mark({"mtime": now - 61}, now)
        assert mark({"mtime": now - 60}, now) > 0
        assert mark({"mtime": now - 60, "created": now - 1}, now) == 0
        assert mark({"size": 3}, now) == mark({"modified": "Tuesday"}, now) == 0

    def test_times_as_libraries_give_them(self):
        from datetime import datetime, timedelta, timezone

        now = float(int(time.time()))
        there = datetime.fromtimestamp(now - 60, timezone(timedelta(hours=9)))
        assert mark({"last_modified": there}, now) == mark({"mtime": now - 60}, now) > 0
        assert mark({"updated": datetime(2020, 1, 1)}, now) > 0
        assert mark({"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, now) > 0


class TestFoundAgain:
    def test_by_pages_each_once(self, store, cache):
        noted(open_images(PHOTOS, cache=cache), cache)
        manifest = read_images_csv(cache / "photos" / "images.csv", "photos")
        store.asked.clear()
        for _ in range(2):
            reader = find_reader(cache / "photos", manifest, ["--data", PHOTOS])
            assert reader("cat/00.png") == store.store["/bucket/photos/cat/00.png"].getvalue()
        assert store.asked["read"] == 1
        with pytest.raises(KeyError, match="nothing"):
            reader("cat/nothing.png")

    def test_a_place_that_is_silent_is_asked_once(self, store, cache):
        noted(open_images(PHOTOS, cache=cache), cache)
        reader = find_reader(cache / "photos", Cache(cache).images("photos"), [PHOTOS])
        store.errors["/bucket/photos/cat/00.png"] = [OSError("no route")]
        store.asked.clear()
        for name in ("cat/00.png", "cat/03.png", "cat/00.png"):
            with pytest.raises(OSError, match=r"route|does not answer"):
                reader(name)
        assert store.asked["read"] == 1

    def test_a_library_that_is_gone_is_no_picture(self, store, cache, monkeypatch):
        images = noted(open_images(PHOTOS, cache=cache), cache)
        origin = cache / "photos" / "origin.json"
        plain = json.loads(origin.read_text())
        assert (plain["source"], plain["root"]) == (PHOTOS, PHOTOS)
        origin.write_text(origin.read_text().replace("flaky", "nothing"))
        manifest = read_images_csv(cache / "photos" / "images.csv", images.name)
        assert find_reader(cache / "photos", manifest, [PHOTOS.replace("flaky", "nothing")]) is None

    def test_commands_call_no_place_that_only_the_cache_names(self, store, cache, tmp_path):
        noted(open_images(PHOTOS, cache=cache), cache)
        table = tmp_path / "list.csv"
        table.write_text("path,label\ncat/00.png,x\n")
        noted(open_images(table, data_root=PHOTOS, cache=cache), cache)
        store.asked.clear()
        for name in ("photos", "list"):
            assert not images_as_they_are(Cache(cache), name).can_read
            manifest = Cache(cache).images(name)
            assert find_reader(cache / name, manifest, ["--data", "flaky://other/photos"]) is None
        assert not store.asked

    def test_by_predict(self, store):
        from featcache.prediction.inputs import as_images, list_paths

        paths = list_paths([f"{PHOTOS}/cat", f"{PHOTOS}/dog/01.png"], lambda: ())
        assert paths == [f"{PHOTOS}/cat/{i}.png" for i in ("00", "03", "06", "09")] + [
            f"{PHOTOS}/dog/01.png"
        ]
        images = as_images(list(paths))
        assert images.read(4) == store.store["/bucket/photos/dog/01.png"].getvalue()


def test_no_credentials_on_disk(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["extract", "--data", "s3://me:SECRET@bucket/photos", "--backbone", "resnet18"],
        ["extract", "--data-root", "s3://me:SECRET@b", "--data", "x.csv", "--backbone", "resnet18"],
        ["extract", "--parts", "s3://me:SECRET@b", "--dask", "local:1", "--backbone", "resnet18"],
        ["extract", "--cache", "s3://me:SECRET@b", "--backbone", "resnet18"],
        ["extract", "--data", "cnmc:s3://me:SECRET@b", "--backbone", "resnet18"],
    ):
        assert run(words) in (1, 2), words
        assert "SECRET" not in "".join(capsys.readouterr())
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in texts if b"SECRET" in text]


def test_the_cache_itself_stays_in_a_folder():
    with pytest.raises(CacheUnwritable, match="can't be at s3://bucket/cache") as caught:
        Cache("s3://bucket/cache")
    assert "mounted" in caught.value.remedy
    assert "--parts" in caught.value.remedy


def test_torchvision_needs_a_folder():
    with pytest.raises(DataError, match="in a folder, not at s3://b"):
        open_images("torchvision:CIFAR10", data_root="s3://b", cache=None)


def test_a_part_of_them(store):
    from featcache.images.manifest import subsample

    images = open_images(PHOTOS, cache=None)
    some = subsample(images, 2)
    assert some.root == PHOTOS
    assert np.array_equal([len(some.read(row)) for row in range(6)], some.size)


# Addresses, and what a store that fails is asked again.


class Refused(Exception):
    """What a store's own library raises."""

    status = None

    def __init__(self, text="", status=None):
        super().__init__(text)
        self.status = status


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "secret",
    [
        "s3://me:SECRET@bucket/photos",
        "s3://AKIA:SE/CRET@bucket/photos",
        "s3://:SECRET@bucket",
        "s3://AKIA:12/SECRET@bucket",
        "https://SECRET@host/photos",
        "s3://SECRET@bucket/photos",
        "sftp://me:SECRET@host:22/x",
        "https://host/x.csv?X-Amz-Signature=SECRET",
        "az://box/photos?sig=SECRET",
        "cnmc:s3://me:SECRET@bucket",
    ],
)
def test_credentials_are_refused_and_not_said(secret):
    assert "SECRET" not in without_secrets(secret)
    with pytest.raises(DataError) as caught:
        check_url(secret)
    assert "SECRET" not in str(caught.value)
    assert "CRET" not in str(caught.value)
    assert "environment" in caught.value.remedy


@pytest.mark.parametrize(
    "plain",
    [
        "s3://bucket/a@b:c",
        "sftp://me@host:22/a@b",
        "abfs://box@account.dfs.core.windows.net/photos",
        "http://localhost:9000/x",
        "file:///photos/ü b",
    ],
)
def test_what_holds_no_credentials_stays(plain):
    assert is_url(plain)
    assert without_secrets(plain) == plain
    assert check_url(plain + "/") == plain


def test_an_object_and_its_folder():
    assert split_url("s3://bucket/a/b.csv") == ("s3://bucket/a", "b.csv")
    assert split_url("s3://b.csv") == ("s3://", "b.csv")


def test_what_is_no_url():
    assert not is_url("photos")
    assert not is_url("torchvision:CIFAR10")
    assert not is_url(r"C:\photos")
    assert without_secrets("what?") == "what?"


@pytest.mark.parametrize(
    ("where", "problem", "remedy"),
    [
        ("nothing://x", "Protocol not known", "s3, gs, az"),
        ("zip://a::file:///b.zip", "in one another", "Unpack"),
        ("s3://", "no bucket or folder", "s3://bucket"),
        ("file:///", "no bucket or folder", "s3://bucket"),
        ("file://photos", "relative", "file:///"),  # a worker's folder is another
        ("local://localhost/photos", "relative", "local:///"),
    ],
)
def test_what_can_t_be_opened(where, problem, remedy):
    with pytest.raises(DataError, match=problem) as caught:
        UrlFolder(where)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("absent", "what", "line"),
    [
        ("gcsfs", "needs gcsfs", "pip install gcsfs"),
        ("fsspec.core", "needs fsspec", 'pip install "featcache[remote]" gcsfs'),
    ],
)
def test_a_library_that_is_not_there(monkeypatch, absent, what, line):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(DataError, match=what) as caught:
        UrlFolder("gs://bucket/photos")
    assert caught.value.remedy == line


def test_opening_imports_fsspec_only_then():
    code = "import sys, featcache.images.sources; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fail_with(*errors):
    """A call that raises these first."""
    waiting, calls = list(errors), []

    def call():
        calls.append(1)
        if waiting:
            raise waiting.pop(0)
        return "well"

    return call, calls


def test_a_fault_that_passes_is_not_seen():
    call, calls = fail_with(OSError("reset"), Refused("busy", 503), TimeoutError())
    assert UrlFolder("memory://x")._ask(call) == "well"
    assert len(calls) == 4


def test_one_that_stays_is_an_oserror():
    call, calls = fail_with(*[Refused("no\nroute")] * 9)
    with pytest.raises(OSError, match=r"^Refused: no$"):
        UrlFolder("memory://x")._ask(call)
    assert len(calls) == 4
    call, calls = fail_with(OSError("reset"))
    with pytest.raises(OSError, match="reset"):
        UrlFolder("memory://x", patient=False)._ask(call)
    assert len(calls) == 1


def test_an_error_does_not_say_where_a_redirection_went():
    call, _ = fail_with(Refused("403, url='https://b.s3/x?X-Amz-Signature=SECRET'", 403))
    with pytest.raises(PermissionError) as caught:
        UrlFolder("memory://x")._ask(call)
    assert "SECRET" not in str(caught.value)
    assert "https://b.s3/x" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Refused(status=403), PermissionError),
        (Refused(status=404), FileNotFoundError),
        (PermissionError(), PermissionError),
    ],
)
def test_what_will_not_pass_is_not_tried_again(error, kind):
    call, calls = fail_with(error)
    with pytest.raises(kind):
        UrlFolder("memory://x")._ask(call)
    assert len(calls) == 1


def test_a_store_with_one_connection_is_asked_one_thing_at_a_time():
    from .stores import Flaky

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    now, most = [], []

    def call():
        now.append(1)
        most.append(len(now))
        time.sleep(0.005)
        now.pop()

    folders = [UrlFolder("flaky://x") for _ in range(4)]
    threads = [threading.Thread(target=folder._ask, args=(call,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_objects_come_and_go(tmp_path):
    folder = UrlFolder(f"file://{tmp_path}/new")
    assert folder.name == "new"
    assert folder.names() == []
    folder.write("a", b"1")
    (tmp_path / "b").write_bytes(b"22")
    folder.upload(tmp_path / "b", "b")
    (tmp_path / "new" / "folder").mkdir()
    assert sorted(folder.names()) == ["a", "b"]
    folder.download("b", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == folder.read("b") == b"22"
    folder.delete("b")
    folder.delete("b")
    assert folder.names() == ["a"]
    with pytest.raises(FileNotFoundError):
        folder.read("b")


def test_a_big_object_is_digested_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_AT_ONCE", 3)
    (tmp_path / "a").write_bytes(b"12345678")
    folder = UrlFolder(f"file://{tmp_path}")
    whole, kept = folder.digest("a", 8)
    assert kept == b"12345678"
    assert folder.digest("a", remote._BIG + 1) == (whole, b"")
