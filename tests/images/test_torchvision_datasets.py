import struct
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets as library
from PIL import Image

from featcache.errors import DataError, UnknownName
from featcache.images.sources import open_images


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
