"""Weight files: found as `auto` finds them, checked, and taken in whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from featcache.errors import UnknownName, WeightsError
from featcache.extraction.registry import BACKBONES
from featcache.extraction.weight_files import add, locate, locate_all, verify
from featcache.extraction.weights import Published

NAME = "squeezenet1_1"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        return get_model(NAME).state_dict()


@pytest.fixture
def own(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A folder with weights of one's own."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(state, folder / f"{NAME}.safetensors")
    return folder


@pytest.fixture
def published(tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch) -> Path:
    """A file whose name begins its hash, as the library would publish it."""
    raw = tmp_path / "raw.pth"
    torch.save(state, raw)
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    path = raw.rename(tmp_path / f"{NAME}-{digest[:8]}.pth")
    known = {"IMAGENET1K_V1": Published("IMAGENET1K_V1", f"https://example.org/{path.name}")}
    monkeypatch.setattr(type(BACKBONES[NAME]), "published", lambda self, name: known)
    return path


def test_found_where_auto_finds_it(own: Path, monkeypatch) -> None:
    monkeypatch.setattr("featcache.extraction.weight_files.PACKAGED", {})
    assert locate(NAME).path is None
    assert locate(NAME, own).path == own / f"{NAME}.safetensors"
    monkeypatch.setenv("FEATCACHE_WEIGHTS", str(own))
    found = {file.backbone: file for file in locate_all()}
    assert len(found) == len(BACKBONES)
    assert [name for name, file in found.items() if file.path] == [NAME]
    assert not found[NAME].official
    with pytest.raises(UnknownName, match="squeezenet1_2"):
        locate("squeezenet1_2")


def test_locate_agrees_with_what_is_opened(own: Path) -> None:
    backbone = BACKBONES[NAME].open(NAME, "auto", own, "penultimate", None)
    digest = hashlib.sha256(locate(NAME, own).path.read_bytes()).hexdigest()
    assert backbone.weights_sha256 == digest


def test_verify(own: Path) -> None:
    assert "loads" in verify(locate(NAME, own))
    (own / f"{NAME}.safetensors").write_bytes(b"cut short")
    with pytest.raises(WeightsError, match="can't be read"):
        verify(locate(NAME, own))
    with pytest.raises(WeightsError, match="no weights at hand"):
        verify(locate("resnet18", own))


def test_a_published_file_is_held_against_its_hash(published: Path) -> None:
    folder = published.parent
    assert "as published" in verify(locate(NAME, folder))
    with published.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(WeightsError, match="not the published file"):
        verify(locate(NAME, folder))


def test_another_network_s_weights_are_refused(own: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        save_file(get_model("resnet18").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=f"no weights of {NAME}"):
        add(NAME, tmp_path / "other.safetensors", tmp_path / "new", False)
    assert not (tmp_path / "new").exists()


def test_add_copies_under_the_name_that_auto_takes(own: Path, tmp_path: Path, state) -> None:
    target = tmp_path / "new" / "deep"
    made = add(NAME, own / f"{NAME}.safetensors", target, False)
    assert made == target / f"{NAME}.safetensors"
    assert locate(NAME, target).path == made
    assert add(NAME, own / f"{NAME}.safetensors", target, False) == made  # the same again
    save_file({name: value + 1 for name, value in state.items()}, tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="is there, and differs"):
        add(NAME, tmp_path / "mine.safetensors", target, False)
    add(NAME, tmp_path / "mine.safetensors", target, True)
    assert made.read_bytes() == (tmp_path / "mine.safetensors").read_bytes()
    assert [path.name for path in target.iterdir()] == [made.name]


def test_the_hub_folder_takes_published_files_only(published: Path, own: Path) -> None:
    made = add(NAME, published, None, False)
    assert made.name == published.name
    assert locate(NAME).official
    with pytest.raises(WeightsError, match="not a file that the library publishes"):
        add(NAME, own / f"{NAME}.safetensors", None, False)
    made.rename(made.with_name(f"{NAME}-mine.pth"))
    assert locate(NAME, made.parent).path is None  # as `find_weights` has it


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"x": Path("/")}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="can't be read as weights"):
        add(NAME, tmp_path / "bad.pth", tmp_path / "new", False)


def test_two_files_for_one_backbone_are_said(tmp_path: Path) -> None:
    for ending in ("aaaaaaaa", "bbbbbbbb"):
        (tmp_path / f"{NAME}-{ending}.pth").write_bytes(b"")
    found = locate(NAME, tmp_path)
    assert found.path is None
    assert "several weight files" in found.problem
