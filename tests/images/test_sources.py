import hashlib
import shutil

import numpy as np
import pytest

from featcache.errors import DataError, UnknownName
from featcache.images.manifest import from_arrays
from featcache.images.sources import open_images


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
