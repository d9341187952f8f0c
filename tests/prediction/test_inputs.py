"""What the user names, as image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.errors import DataError
from featcache.hashing import sha256_file
from featcache.prediction.inputs import as_images, list_paths


def _names(found: list[str]) -> list[str]:
    return [Path(path).name for path in found]


def test_folders_patterns_and_files_in_the_order_named(pictures: Path) -> None:
    cats = sorted(path.name for path in (pictures / "cat").iterdir())
    dogs = sorted(path.name for path in (pictures / "dog").iterdir())
    owl = next((pictures / "owl").iterdir())
    named = [str(owl), str(pictures / "dog" / "*.png"), pictures / "cat"]
    assert _names(list_paths(named, lambda: ())) == [owl.name, *dogs, *cats]
    assert len(list_paths([str(pictures / "**" / "*.png")], lambda: ())) == 12
    assert len(list_paths([pictures], lambda: ())) == 12


def test_each_image_once(pictures: Path) -> None:
    assert len(list_paths([pictures, pictures / "cat", pictures], lambda: ())) == 12


def test_a_list_on_standard_input(pictures: Path) -> None:
    owl = next((pictures / "owl").iterdir())
    lines = [f"{owl}\n", "\n", f"{pictures / 'cat'}\r\n", "gone.png"]
    found = list_paths(["-"], lambda: lines)
    assert len(found) == 6
    assert (found[0], found[-1]) == (str(owl), "gone.png")


def test_a_name_with_brackets_is_a_file_if_it_is_there(tmp_path: Path) -> None:
    odd = tmp_path / "a[1].png"
    odd.write_bytes(b"x")
    assert list_paths([odd], lambda: ()) == [str(odd)]


@pytest.mark.parametrize(
    ("named", "part"),
    [([], "no images named"), (["-"], "no images named"), (["*.nothing"], "no file is like"),
     (["."], "no images below")],
)  # fmt: skip
def test_nothing_to_label_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=part):
        list_paths(named, lambda: ())


def test_digests_are_those_of_the_bytes_once_they_are_read(pictures: Path) -> None:
    path = next((pictures / "owl").iterdir())
    images = as_images([str(path), np.zeros((2, 2, 3), np.uint8)])
    assert images.sha256.tolist() == ["", ""]
    assert images.read(0) == path.read_bytes()
    assert images.sha256[0] == sha256_file(path)
    assert images.read(1).shape == (2, 2, 3)
