"""Weight files in the cache of the Hugging Face hub, laid out as that library does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featcache.errors import WeightsError
from featcache.extraction.registry import open_backbone
from featcache.extraction.weight_files import add, locate, verify
from featcache.extraction.weights import on_hub
from featcache.hashing import sha256_file

timm = pytest.importorskip("timm")

NAME = "timm:test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _no_way)
    monkeypatch.delenv("FEATCACHE_WEIGHTS", raising=False)
    return folder


def _no_way(*_: object, **__: object) -> str:
    raise TimeoutError("timed out\nand more lines")


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("test_resnet")
    save_file(model.state_dict(), tmp_path / "content")
    return (tmp_path / "content").read_bytes()


def keep(hub: Path, content: bytes, repository: str = REPOSITORY, revision: str = "main") -> Path:
    """As the hub's library keeps a file: named by its sha256, linked to from a commit."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = folder / "snapshots" / commit / "model.safetensors"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    for path in (snapshot, blob, folder / "refs" / revision):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    (folder / "refs" / revision).write_text(commit)
    if not snapshot.is_symlink():
        snapshot.symlink_to(blob)
    return snapshot


def test_the_hubs_cache_is_searched(hub: Path, content: bytes) -> None:
    keep(hub, content)
    found = open_backbone(NAME)
    assert (found.weights, found.weights_sha256) == (
        "r160_in1k", hashlib.sha256(content).hexdigest()
    )  # fmt: skip
    found.build()


def test_ones_own_folder_comes_first(hub: Path, content: bytes, tmp_path: Path) -> None:
    keep(hub, content)
    own = tmp_path / "own"
    own.mkdir()
    assert open_backbone(NAME, weights_dir=own).weights == "r160_in1k"
    with torch.random.fork_rng(devices=[]):
        save_file(
            timm.create_model("test_resnet").state_dict(), own / "timm.test_resnet.safetensors"
        )
    assert open_backbone(NAME, weights_dir=own).weights == "local"


def test_a_damaged_file_is_refused(hub: Path, content: bytes) -> None:
    path = keep(hub, content)
    path.resolve().write_bytes(content[:-1] + b"\0")
    with pytest.raises(WeightsError, match="is not the published file"):
        open_backbone(NAME)


def test_a_download_goes_into_the_hubs_cache(
    hub: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, member: str, revision: str | None = None) -> str:
        asked.append((repository, member, revision))
        return str(keep(hub, content))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert open_backbone(NAME).weights_sha256 == hashlib.sha256(content).hexdigest()
    open_backbone(NAME).build()
    assert asked == [(REPOSITORY, "model.safetensors", None)]


def test_what_its_client_raises_is_said_in_a_line(hub: Path) -> None:
    with pytest.raises(WeightsError, match="can't be downloaded: timed out\nsearched") as caught:
        open_backbone(NAME)
    assert "and more lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "member", "url"),
    [
        ("timm/a.b", "", "timm/a.b/resolve/main/model.safetensors"),
        ("timm/a.b", "pytorch_model.bin", "timm/a.b/resolve/main/model.safetensors"),
        ("x/y@v2", "", "x/y/resolve/v2/model.safetensors"),
        ("x/y", "open_clip_pytorch_model.bin", "x/y/resolve/main/open_clip_model.safetensors"),
        ("x/y", "part/w.bin", "x/y/resolve/main/part/w.safetensors"),
        ("x/y", "w.safetensors", "x/y/resolve/main/w.safetensors"),
    ],
)
def test_never_a_pickle(address: str, member: str, url: str) -> None:
    found = on_hub("tag", "timm.a.b", address, member)
    assert found is not None
    assert found.url == f"https://huggingface.co/{url}"
    assert found.file == "timm.a.b.safetensors"


@pytest.mark.parametrize("member", ["w.pt", "w.pth", "w.npz", "w.pth.tar"])
def test_no_safe_twin(member: str) -> None:
    assert on_hub("tag", "timm.a.b", "x/y", member) is None


def test_models_whose_weights_are_pickles_only() -> None:
    with pytest.raises(WeightsError, match="in a form that is safe to read"):
        open_backbone("timm:vit_giant_patch16_gap_224")
    with pytest.raises(WeightsError, match="in a form that is safe to read"):
        locate("timm:vit_giant_patch16_gap_224")


def test_weight_files(hub: Path, content: bytes, tmp_path: Path) -> None:
    assert locate(NAME).path is None
    kept = keep(hub, content)
    found = locate(NAME)
    assert (found.path, found.official) == (kept, True)
    assert "loads into the network" in verify(found)
    own = tmp_path / "own"
    target = add(NAME, _copy(content, tmp_path), own, False)
    assert target == own / "timm.test_resnet.safetensors"
    assert locate(NAME, own).path == target
    assert sha256_file(target) == hashlib.sha256(content).hexdigest()
    with pytest.raises(WeightsError, match="no folder for weights of your own"):
        add(NAME, _copy(content, tmp_path), None, False)


def _copy(content: bytes, folder: Path) -> Path:
    path = folder / "mine.safetensors"
    path.write_bytes(content)
    return path
