from __future__ import annotations

import hashlib
import shutil
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets as library
from PIL import Image

from featcache.errors import DataError, UnknownName
from featcache.images import files
from featcache.images.manifest import from_arrays, read_images_csv, write_images_csv
from featcache.images.sources import find_reader, open_images


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def opened(root, **options):
    return open_images(root, cache=None, **options)


def rows(images):
    columns = (images.ids, images.labels, images.split)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_folder_of_classes(tmp_path):
    root = touch(tmp_path / "cells", "b/2.png", "a/1.JPG", "a/deep/3.png", "a/notes.txt")
    images = opened(root)
    assert images.name == "cells"
    assert rows(images) == [("a/1.JPG", "a", ""), ("a/deep/3.png", "a", ""), ("b/2.png", "b", "")]
    assert images.sha256[0] == hashlib.sha256(b"a/1.JPG").hexdigest()
    assert images.read(2) == b"b/2.png"


@pytest.mark.parametrize("valid", ["val", "Valid", "VALIDATION", "dev"])
def test_folder_of_splits(tmp_path, valid):
    root = touch(tmp_path / "x", "train/a/1.png", "test/b/sub/2.png", f"{valid}/a/3.png")
    assert sorted(rows(opened(root))) == sorted(
        [("train/a/1.png", "a", "train"), ("test/b/sub/2.png", "b", "test"),
         (f"{valid}/a/3.png", "a", "val")]
    )  # fmt: skip


def test_train_alone_is_a_split_if_it_holds_class_folders(tmp_path):
    root = touch(tmp_path / "x", "train/a/1.png", "train/b/2.png")
    assert rows(opened(root)) == [("train/a/1.png", "a", "train"), ("train/b/2.png", "b", "train")]


def test_a_class_may_be_called_train(tmp_path):
    root = touch(tmp_path / "vehicles", "train/1.png", "car/2.png", "plane/3.png")
    assert set(opened(root).labels.tolist()) == {"train", "car", "plane"}


@pytest.mark.parametrize("split", ["train", "Training", "test", "val"])
def test_a_split_folder_beside_class_folders_is_refused(tmp_path, split):
    root = touch(tmp_path / "x", f"{split}/cat/1.png", f"{split}/dog/2.png", "cat/3.png")
    with pytest.raises(DataError, match=rf"mixes split folders \({split}\) with others \(cat\)"):
        opened(root)


def test_names_with_spaces_unicode_commas_and_newlines(tmp_path, cache):
    names = ["große Zellen/a b.png", "c,d/e'f\".png", "g\nh/i.png", "猫/j.png"]
    root = touch(tmp_path / "odd names", *names)
    images = open_images(root, cache=cache)
    assert sorted(images.ids.tolist()) == sorted(names)
    assert set(images.labels.tolist()) == {"große Zellen", "c,d", "g\nh", "猫"}


def test_group_by_the_folder_an_image_stands_in(tmp_path):
    root = touch(tmp_path / "x", "a/p1/1.png", "a/p1/2.png", "b/3.png")
    assert opened(root, group="parent").groups.tolist() == ["a/p1", "a/p1", "b"]
    assert opened(root, group="image").groups.tolist() == ["", "", ""]
    with pytest.raises(DataError, match="no column 'patient'"):
        opened(root, group="patient")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images below"),
        (["a/readme.txt"], "no images below"),
        (["a/1.png", "2.png"], r"1 image below .* no class folder, for instance 2\.png"),
        (["train/a/1.png", "test/2.png"], r"for instance test/2\.png"),
        (["train/a/1.png", "test/a/2.png", "cat/3.png"], r"mixes split .*test, train.*\(cat\)"),
    ],
)
def test_folders_that_make_no_sense(tmp_path, names, message):
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        opened(touch(tmp_path / "x", *names))
    assert caught.value.remedy


def test_a_loop_of_links_ends(tmp_path):
    root = touch(tmp_path / "x", "a/1.png")
    (root / "a" / "again").symlink_to(root)
    assert opened(root).ids.tolist() == ["a/1.png"]


def test_the_same_name_in_another_class_is_another_image(tmp_path):
    assert len(opened(touch(tmp_path / "x", "a/1.png", "b/1.png"))) == 2


def test_name_option(tmp_path):
    root = touch(tmp_path / "x", "a/1.png")
    assert opened(root, name="mine").name == "mine"
    with pytest.raises(DataError, match="name"):
        opened(root, name="../up")
    assert len(opened(root, name="é" * 100).name) == 100
    with pytest.raises(DataError, match="longer than 200 bytes") as caught:
        opened(root, name="é" * 101)
    assert "--name cells" in caught.value.remedy


def test_digits_are_all_there_and_use_the_whole_range():
    from sklearn.datasets import load_digits

    images, bunch = opened("digits"), load_digits()
    assert len(images) == 1797
    assert len(set(images.ids.tolist())) == 1797
    assert images.labels.tolist() == [str(y) for y in bunch.target]
    stack = np.stack([images.read(row) for row in range(len(images))])
    assert (stack.dtype, stack.min(), stack.max()) == (np.uint8, 0, 255)
    np.testing.assert_allclose(stack, bunch.images * 255 / 16, atol=0.5)


def test_a_manifest_is_returned_as_it_is():
    images = from_arrays("x", [np.zeros((2, 2), np.uint8)], ids=["a"], labels=[""])
    assert open_images(images) is images


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("digit", DataError, "no folder or file 'digit'\nDid you mean digits"),
        ("no/such/place", DataError, "no folder or file"),
        ("torchvison:MNIST", UnknownName, "Did you mean torchvision"),
        ("digits:8", UnknownName, "digits:8"),
        ("folder:no/such", DataError, "no folder 'no/such'"),
        ("csv:no/such.csv", DataError, "no file"),
        ("gone.csv", DataError, "no folder or file"),
    ],
)
def test_what_can_not_be_opened(spec, kind, message):
    with pytest.raises(kind, match=message):
        opened(spec)


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "x.png").write_bytes(b"1")
    with pytest.raises(DataError, match="neither a folder of images nor a table"):
        opened(tmp_path / "x.png")


def test_a_folder_called_digits_can_be_meant(tmp_path, monkeypatch):
    touch(tmp_path, "digits/a/1.png")
    monkeypatch.chdir(tmp_path)
    assert len(opened("folder:digits")) == 1
    assert len(opened("digits")) == 1797


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "pics/a/1.png")
    assert len(opened("~/pics")) == len(opened("folder:~/pics")) == 1


def test_moving_the_folder_changes_no_id(tmp_path):
    root = touch(tmp_path / "x", "a/1.png")
    before = opened(root)
    shutil.move(root, tmp_path / "y")
    after = opened(tmp_path / "y", name="x")
    assert before.ids.tolist() == after.ids.tolist()
    assert before.sha256.tolist() == after.sha256.tolist()


# Images that were extracted are found again by id, where they still are.


def kept(folder: Path, images):
    write_images_csv(folder / "images.csv", images)
    return read_images_csv(folder / "images.csv", images.name)


def test_a_folder_s_images_are_read_from_where_they_were(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = open_images("pictures", cache=None)  # a relative path
    manifest = kept(tmp_path / "kept", images)
    assert not manifest.can_read
    monkeypatch.chdir("/")
    reader = find_reader(tmp_path / "kept", manifest)
    assert reader(str(images.ids[3])) == (pictures / str(images.ids[3])).read_bytes()
    (pictures / str(images.ids[3])).unlink()
    with pytest.raises(OSError, match="No such file"):
        reader(str(images.ids[3]))


def test_a_table_s_images_too(pictures, tmp_path):
    table = tmp_path / "list.csv"
    ids = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{id_},{id_[:3]}\n" for id_ in ids))
    manifest = kept(tmp_path / "kept", open_images(table, data_root=pictures, cache=None))
    assert find_reader(tmp_path / "kept", manifest)(ids[0]) == (pictures / ids[0]).read_bytes()
    table.write_text("path,label\n" + "".join(f"{pictures / id_},x\n" for id_ in ids))
    manifest = kept(tmp_path / "other", open_images(table, cache=None))
    first = str(manifest.ids[0])
    assert find_reader(tmp_path / "other", manifest)(first) == (pictures / ids[0]).read_bytes()


def test_digits_need_no_folder(tmp_path):
    images = open_images("digits", cache=None)
    reader = find_reader(tmp_path / "kept", kept(tmp_path / "kept", images))
    assert (np.asarray(reader("0005")) == images.read(5)).all()


def test_images_that_can_read_are_asked_themselves(tmp_path):
    images = open_images("digits", cache=None)
    assert (np.asarray(find_reader(tmp_path, images)("0007")) == images.read(7)).all()


@pytest.mark.parametrize(
    "text", [None, "", "[]", '{"source": "x"}', '{"source": 1, "root": "/no"}']
)
def test_what_can_not_be_found_is_none(pictures, tmp_path, text):
    manifest = kept(tmp_path / "kept", open_images(pictures, cache=None))
    origin = tmp_path / "kept" / "origin.json"
    origin.unlink() if text is None else origin.write_text(text)
    assert find_reader(tmp_path / "kept", manifest) is None


# Data sets of torchvision.


def write_mnist(root, train, test):
    """The four files of MNIST in the layout of yann.lecun.com/exdb/mnist, as torchvision puts it.

    Sources of the format: `train-images-idx3-ubyte` begins 0x00000803, n, 28, 28, big-endian.
    """
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, (pixels, labels) in (("train", train), ("t10k", test)):
        head = struct.pack(">IIII", 0x803, *pixels.shape)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 0x801, len(labels))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


@pytest.fixture(autouse=True)
def _no_download(monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_mnist_from_its_raw_files(tmp_path):
    rng = np.random.default_rng(0)
    parts = [
        (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8))
        for n in (5, 3)
    ]
    write_mnist(tmp_path, *parts)
    images = open_images("torchvision:MNIST", data_root=tmp_path, cache=None)
    assert images.name == "mnist"
    assert images.split.tolist() == ["train"] * 5 + ["test"] * 3
    assert images.ids.tolist()[4:6] == ["train/000004", "test/000000"]
    both = np.concatenate([pixels for pixels, _ in parts])
    np.testing.assert_array_equal(np.stack([images.read(i) for i in range(8)]), both)
    wanted = [library.MNIST.classes[y] for _, labels in parts for y in labels]
    assert images.labels.tolist() == wanted


def test_a_data_set_without_splits_or_root(monkeypatch):
    monkeypatch.setattr(library.FakeData.__init__, "__defaults__",
                        (6, (3, 8, 8), 3, None, None, 0))  # fmt: skip
    images = open_images("torchvision:FakeData", cache=None)
    assert len(images) == 6
    assert set(images.split.tolist()) == {""}
    assert set(images.labels.tolist()) <= {"0", "1", "2"}
    assert images.ids[0] == "all/000000"
    assert images.read(0).shape == (8, 8, 3)


class _Parts:
    """A data set with splits of its own names, as Flowers102 and Country211 have."""

    classes = ("rose", "lily")

    def __init__(self, root, split="train", transform=None, download=False):
        known = {"train": 2, "valid": 1, "test": 1}
        if split not in known:
            raise ValueError(f"Unknown value {split!r} for argument split")
        self._n = known[split]

    def __len__(self):
        return self._n

    def __getitem__(self, row):
        return Image.new("L", (4, 4), row), row


class _Undownloadable(_Parts):
    def __init__(self, root, split="train"):
        super().__init__(root, split)


class _Masks(_Parts):
    def __getitem__(self, row):
        return Image.new("L", (4, 4)), Image.new("L", (4, 4))


class _Odd(_Parts):
    def __init__(self, root, split="standard"):
        raise ValueError(f"Unknown value {split!r}")


@pytest.mark.parametrize("cls", [_Parts, _Undownloadable])
def test_every_split_that_is_there(monkeypatch, cls):
    monkeypatch.setattr(library, "Flowers102", cls)
    images = open_images("torchvision:Flowers102", cache=None)
    assert images.split.tolist() == ["train", "train", "val", "test"]
    assert images.labels.tolist() == ["rose", "lily", "rose", "rose"]


def test_what_is_no_classification(monkeypatch):
    monkeypatch.setattr(library, "Flowers102", _Masks)
    with pytest.raises(DataError, match="no image classification data set"):
        open_images("torchvision:Flowers102", cache=None)


def test_splits_of_unknown_names(monkeypatch):
    monkeypatch.setattr(library, "Flowers102", _Odd)
    with pytest.raises(DataError, match="no split that featcache knows"):
        open_images("torchvision:Flowers102", cache=None)


def test_unknown_names_get_suggestions():
    with pytest.raises(UnknownName, match="Did you mean CIFAR10"):
        open_images("torchvision:CIFAR-10", cache=None)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN", "EuroSAT"])
def test_offline_is_a_data_error_with_remedies(tmp_path, name):
    pytest.importorskip("scipy")
    with pytest.raises(DataError, match="can't be downloaded") as caught:
        open_images(f"torchvision:{name}", data_root=tmp_path, cache=None)
    assert str(tmp_path) in caught.value.problem
    assert "--data-root" in caught.value.remedy


def test_a_data_set_that_needs_more_than_a_name(tmp_path):
    with pytest.raises(DataError, match="torchvision's"):
        open_images("torchvision:DatasetFolder", data_root=tmp_path, cache=None)


def test_group_is_refused():
    with pytest.raises(DataError, match="no column 'patient'"):
        open_images("torchvision:MNIST", group="patient", cache=None)


def _said(caplog, root):
    with caplog.at_level("INFO", logger="featcache"):
        open_images(root, cache=None)
    return caplog.messages


def test_files_that_are_no_images_are_counted_by_their_ending(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(files, "suffixes", lambda: files.SUFFIXES)
    names = [
        "a/1.png",
        "b/1.png",
        "a/n.txt",
        "a/m.TXT",
        "b/1.xmp",
        "README",
        "a/.hidden",
        "b/i.HEIC",
    ]
    said = _said(caplog, touch(tmp_path / "p", *names))
    assert any("skipped 5 files: 2 .txt, " in text and "1 .xmp" in text for text in said)
    assert any("1 HEIC image left out, for instance b/i.HEIC" in text
               and 'pip install "featcache[heif]"' in text for text in said)  # fmt: skip


def test_nothing_is_said_if_nothing_was_skipped(tmp_path, caplog):
    said = _said(caplog, touch(tmp_path / "p", "a/1.png", "b/1.png", "b/2.png"))
    assert said == ["classes: a 1, b 2"]


def test_many_classes_are_said_in_a_line(tmp_path, caplog):
    said = _said(caplog, touch(tmp_path / "p", *(f"c{i:02d}/1.png" for i in range(20))))
    assert said[-1].startswith("classes: c00 1, c01 1")
    assert said[-1].endswith("and 8 more")


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (["animals/cat/1.png", "animals/dog/1.png"], "--data {root}/animals"),
        (["cat/1.png", "cat/2.png"], "--data {above}"),
        (["cat/a/1.png", "cat/2.png"], "--data {above}"),
        (["animals/cat/1.png", "cars/vw/1.png"], "--data {root}/animals"),
        (["animals/cat/1.png", "cars/1.png"], ""),
        (["animals/1.png", "cars/1.png"], ""),
        (["train/animals/1.png", "test/animals/2.png"], ""),
    ],
)
def test_asks_whether_another_level_was_meant(tmp_path, caplog, names, asked):
    root = touch(tmp_path / "p", *names)
    said = " ".join(_said(caplog, root))
    assert (asked.format(root=root, above=tmp_path) if asked else "classes: ") in said
    assert asked or "--data" not in said


def test_the_folder_above_is_named_as_it_would_be_typed():
    from featcache.images.sources import _above

    above = {"one": ".", "a/one/": "a", "/one": "/", "/a/b": "/a", ".": "./..", "..": "../..",
             "s3://bucket/a/b": "s3://bucket/a"}  # fmt: skip
    assert {one: _above(one) for one in above} == above


def test_images_in_no_class_folder_may_be_one_class(tmp_path):
    root = touch(tmp_path / "p", "1.png", "2.png")
    with pytest.raises(DataError, match="in no class folder") as error:
        open_images(root, cache=None)
    assert f"Is p itself a class? Then: --data {tmp_path}\n" in error.value.remedy


@pytest.mark.parametrize("found", [True, False])
def test_digits_are_those_of_scikit_learn(monkeypatch, found):
    from sklearn.datasets import load_digits

    if not found:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    images, theirs = open_images("digits", cache=None), load_digits()
    assert images.labels.tolist() == [str(digit) for digit in theirs.target]
    expected = np.rint(theirs.images * (255 / 16))
    assert np.array_equal(np.stack([images.read(row) for row in range(len(images))]), expected)
