"""Folders of images with links that cross, and with files that are no files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from noise import noise

from featcache.cli.main import run
from featcache.errors import DataError
from featcache.extraction.loader import Loading, load_batches
from featcache.extraction.preprocess import Preprocess
from featcache.images import files
from featcache.images.sources import open_images
from featcache.prediction.inputs import as_images, list_paths


def test_a_link_to_another_class_takes_nothing_away(pictures: Path) -> None:
    (pictures / "cat" / "cross").symlink_to("../dog")
    images = open_images(pictures, cache=None)
    alone = [id_ for id_ in images.ids.tolist() if "/cross/" not in id_]
    assert len(alone) == 12
    assert images.labels.tolist().count("dog") == 4
    assert images.labels.tolist().count("cat") == 8


def test_classes_that_link_to_one_another_end(pictures: Path) -> None:
    names = ("cat", "dog", "owl")
    alone = {*open_images(pictures, cache=None).ids.tolist()}
    for one in names:
        for other in names:
            (pictures / one / f"to_{other}").symlink_to(f"../{other}")
    images = open_images(pictures, cache=None)
    assert {id_ for id_ in images.ids.tolist() if id_.count("/") == 1} == alone
    assert len({*zip(images.sha256.tolist(), images.labels.tolist(), strict=True)}) == 3 * 12


def test_links_between_classes_and_splits_are_told_as_leaks(
    pictures: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "splits"
    root.mkdir()
    for part in ("train", "test"):
        (root / part).symlink_to(pictures)
    (pictures / "cat" / "cross").symlink_to("../dog")
    where = ["--data", str(root), "--cache", str(cache)]
    assert run(["extract", *where, "--backbone", "resnet18", "--weights", "random"]) == 0
    fit = ["fit", "--data", "splits", "--cache", str(cache), "--head", "ridge"]
    assert run([*fit, "--reports", str(tmp_path / "reports"), "--strict"]) == 4
    said = capsys.readouterr().err
    assert "test images are also among the training images" in said
    assert "4 contents have two labels" in said


@pytest.fixture
def odd(pictures: Path) -> Path:
    """Pictures, and beside them a pipe, a socket, a link to nowhere and one to itself."""
    folder = pictures / "cat"
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to("gone.png")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "null.png").symlink_to("/dev/zero")
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.png")
    finally:
        os.chdir(here)
    return pictures


def test_what_is_no_file_costs_itself(odd: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = open_images(odd, cache=None)
    assert len(images) == 12
    assert "5 of 17 image files can't be read" in caplog.text
    for path in odd.glob("*/[0-9]*.png"):
        path.unlink()
    with pytest.raises(DataError, match="5 of 5 image files can't be read"):
        open_images(odd, cache=None)


def test_an_unreadable_file_costs_itself(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    digest = files.sha256_file

    def denied(path: Path) -> str:
        if path.name == "03.png":
            raise PermissionError(13, "Permission denied")
        return digest(path)

    monkeypatch.setattr(files, "sha256_file", denied)
    images = open_images(pictures, cache=None)
    assert len(images) == 11
    assert "03.png: Permission denied" in caplog.text


def test_new_images_that_are_no_files_cost_themselves(odd: Path) -> None:
    paths = list_paths([odd], lambda: ())
    plain = Preprocess(resize=8, crop=8)
    (batch,) = load_batches(as_images([*paths]), np.arange(17), (plain,), 17, Loading(2))
    assert len(batch.rows) == 12
    found = {Path(paths[row]).name: problem for row, problem in batch.problems.items()}
    assert {problem.kind for problem in found.values()} == {"read"}
    assert found["pipe.png"].text == "can't be read: it is no regular file"
    assert "No such file" in found["nowhere.png"].text


def test_a_pipe_put_in_an_images_place_is_not_opened(pictures: Path) -> None:
    images = open_images(pictures, cache=None)
    path = pictures / str(images.ids[0])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        images.read(0)


def test_a_file_with_holes_of_hundreds_of_gigabytes_is_not_read(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pictures / "dog" / "huge.png"
    noise(0).save(path)
    os.truncate(path, 625_000_000_000)
    assert len(open_images(pictures, cache=None)) == 12
    assert "huge.png: its 625 GB are more than an image has" in caplog.text
