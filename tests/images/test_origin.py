"""Images that were extracted are found again by id, where they still are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.images.manifest import read_images_csv, write_images_csv
from featcache.images.sources import find_reader, open_images


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
