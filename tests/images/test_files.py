import os
import time

import pytest

from featcache.errors import DataError
from featcache.hashing import sha256_file
from featcache.images import files
from featcache.images.files import from_files, list_images
from featcache.images.manifest import write_images_csv


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are digested, as it happens."""
    seen = []

    def spy(path):
        seen.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", spy)
    return seen


def settle(*paths):
    """Let files look as if they were last changed an hour ago."""
    for path in paths:
        when = time.time_ns() - 3600 * 10**9
        os.utime(path, ns=(when, when))


@pytest.fixture
def three(tmp_path, monkeypatch):
    # A test can't set the time of an inode's change: leave it out, but in its own test.
    monkeypatch.setattr(files, "_changed_ns", lambda stat: stat.st_mtime_ns)
    paths = [tmp_path / "src" / f"{n}.png" for n in "abc"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(path.name.encode())
    settle(*paths)
    return paths


def opened(paths, cache, **options):
    ids = [path.name for path in paths]
    images = from_files("data", paths, ids=ids, labels=ids, cache=cache, **options)
    write_images_csv(cache / "data" / "images.csv", images)
    return images


def test_digests_are_those_of_the_bytes(three, cache):
    images = opened(three, cache)
    assert images.sha256.tolist() == [sha256_file(path) for path in three]
    assert images.read(1) == b"b.png"
    assert images.size.tolist() == [5, 5, 5]


def test_unchanged_files_are_not_read_again(three, cache, reads):
    first = opened(three, cache)
    assert sorted(reads) == ["a.png", "b.png", "c.png"]
    reads.clear()
    assert opened(three, cache).sha256.tolist() == first.sha256.tolist()
    assert not reads


def test_order_and_selection_do_not_matter_to_what_is_known(three, cache, reads):
    opened(three, cache)
    reads.clear()
    assert opened([three[2], three[0]], cache).sha256.tolist() == [
        sha256_file(three[2]), sha256_file(three[0]),
    ]  # fmt: skip
    assert not reads


@pytest.mark.parametrize(
    ("content", "seconds"), [(b"longer than it was", 0), (b"B.png", 1), (b"b.png", 1)]
)
def test_another_size_or_time_is_read_again(three, cache, reads, content, seconds):
    opened(three, cache)
    reads.clear()
    before = three[1].stat().st_mtime_ns
    three[1].write_bytes(content)
    os.utime(three[1], ns=(before + seconds * 10**9,) * 2)
    assert opened(three, cache).sha256.tolist() == [sha256_file(path) for path in three]
    assert reads == ["b.png"]


def test_a_file_changed_within_the_clocks_grain_is_not_trusted(three, cache, reads, monkeypatch):
    now = time.time_ns()
    monkeypatch.setattr(files.time, "time_ns", lambda: now)
    os.utime(three[0], ns=(now, now))
    images = opened(three, cache)
    assert images.mtime_ns[0] == 0
    assert (images.mtime_ns[1:] > 0).all()
    three[0].write_bytes(b"A.png")  # within the same tick
    os.utime(three[0], ns=(now, now))
    reads.clear()
    assert opened(three, cache).sha256[0] == sha256_file(three[0])
    assert reads == ["a.png"]


def test_a_file_from_the_future_is_not_trusted(three, cache):
    when = time.time_ns() + 10**15
    os.utime(three[0], ns=(when, when))
    assert opened(three, cache).mtime_ns[0] == 0


def test_a_file_put_in_another_s_place_with_its_size_and_time_is_read_again(
    tmp_path, cache, reads, monkeypatch
):
    now = time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + 60 * 10**9)  # past the grain
    path = tmp_path / "a.bmp"
    path.write_bytes(b"old")
    settle(path)
    opened([path], cache)
    reads.clear()
    opened([path], cache)
    assert not reads
    then = path.stat().st_mtime_ns
    changed = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == changed:  # the clock of the file system ticks
        path.write_bytes(b"new")
        os.utime(path, ns=(then, then))
    assert opened([path], cache).sha256[0] == sha256_file(path)
    assert reads == ["a.bmp"]


def test_rehash_reads_all(three, cache, reads):
    opened(three, cache)
    reads.clear()
    opened(three, cache, rehash=True)
    assert len(reads) == 3


def test_a_new_file_is_the_only_one_read(three, cache, reads):
    opened(three[:2], cache)
    reads.clear()
    opened(three, cache)
    assert reads == ["c.png"]


def test_a_link_to_nowhere_is_left_out_by_name(three, cache, caplog):
    link = three[0].with_name("aa.png")
    link.symlink_to("gone.png")
    images = opened([three[0], link, *three[1:]], cache)
    assert images.ids.tolist() == ["a.png", "b.png", "c.png"]
    assert images.labels.tolist() == ["a.png", "b.png", "c.png"]
    assert images.read(1) == b"b.png"
    assert "1 of 4 image files can't be read, for instance" in caplog.text
    assert "aa.png: No such file" in caplog.text


def test_names_that_are_no_utf8_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    odd = os.fsencode(tmp_path / "x") + b"/caf\xe9.png"
    try:
        with open(odd, "wb") as file:  # noqa: PTH123
            file.write(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    ids = list_images(tmp_path)
    with pytest.raises(DataError, match=r"1 file name not valid UTF-8.*udce9"):
        from_files("d", [tmp_path / i for i in ids], ids=ids, labels=ids)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1")


def test_list_images_takes_known_suffixes_in_any_case_and_nothing_hidden(tmp_path):
    touch(tmp_path, "b/2.JPG", "a/1.jpeg", "a/x.txt", "a/.3.png", ".git/4.png", "a/deep/er/5.Tif",
          "a/Thumbs.db", "6.webp")  # fmt: skip
    (tmp_path / "a" / "folder.png").mkdir()
    assert list_images(tmp_path) == ["6.webp", "a/1.jpeg", "a/deep/er/5.Tif", "b/2.JPG"]


def test_list_images_follows_links_each_real_folder_once_in_a_class(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    root = tmp_path / "root"
    touch(root, "cat/2.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "dog_too").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    for name in ("x", "y"):
        (root / "cat" / "young").mkdir(exist_ok=True)
        (root / "cat" / "young" / name).symlink_to(tmp_path / "elsewhere")
    assert list_images(root) == ["cat/2.png", "cat/young/x/1.png", "dog/1.png", "dog_too/1.png"]


def test_list_images_does_not_depend_on_the_order_of_the_disk(tmp_path, monkeypatch):
    touch(tmp_path / "elsewhere", "1.png")
    root = tmp_path / "root"
    (root / "pets" / "old").mkdir(parents=True)
    (root / "pets" / "old" / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "pets" / "old" / "ape").symlink_to(tmp_path / "elsewhere")
    plain = os.walk

    def backwards(top, **options):
        for folder, subfolders, names in plain(top, **options):
            subfolders.sort(reverse=True)
            yield folder, subfolders, names

    monkeypatch.setattr(files.os, "walk", backwards)
    assert list_images(root) == ["pets/old/ape/1.png"]
