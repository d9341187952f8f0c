import subprocess
import sys
import threading
import time

import pytest

from featcache.errors import DataError
from featcache.images import remote
from featcache.images.remote import UrlFolder, check_url, is_url, split_url, without_secrets

fsspec = pytest.importorskip("fsspec")


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
