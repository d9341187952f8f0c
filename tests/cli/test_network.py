"""Which commands may use the network: extract, finetune, predict and what runs these."""

from __future__ import annotations

import importlib
import importlib.util
import socket
from dataclasses import replace
from pathlib import Path

import click
import huggingface_hub
import numpy as np
import pytest
import torch
from noise import noise

from featcache.cli.main import COMMANDS, cli, run
from featcache.errors import WeightsError
from featcache.extraction.registry import BACKBONES, open_backbone
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.feature_file import create, to_digests

NET = "squeezenet1_1"
MAY = {"extract", "finetune", "predict", "run", "demo"}
RUN = f"{NET}.concat.nearest_mean"
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
# The words of a command -> its exit code if there are no weights on this machine.
OFFLINE = {
    "fit --head dummy --folds 2": 0,
    "compare --head dummy,nearest_mean --folds 2": 0,
    "rank": 0,
    "report": 0,
    f"report reports/pictures/{RUN}": 0,
    f"export {RUN} -o copy": 0,
    f"export {RUN} --standalone -o alone": 1,
    "cache ls": 0,
    "cache status": 0,
    f"cache status --backbone {NET},resnet18,vgg16 --image-size 32": 0,
    "cache verify": 0,
    "cache verify --deep 2": 1,
    "cache prune --dry-run": 0,
    "cache export out.npz": 0,
    "fit --data torchvision:CIFAR10": 1,
    "report --data torchvision:CIFAR10": 1,
    "cache status --data torchvision:CIFAR10": 1,
    "weights list --all": 0,
    f"weights path {NET}": 1,
    "weights verify vgg16": 1,
    "weights add resnet18 no.pth": 1,
    "backbones": 0,
    "import absent.npz --data pictures --as clip": 2,
    "doctor": 0,
}
if ONNX:
    OFFLINE[f"export {RUN} --onnx model.onnx"] = 1
if importlib.util.find_spec("timm"):
    OFFLINE["backbones --timm mobilenetv3_small_050"] = 0
    OFFLINE["backbones --search uni"] = 0


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every way out of this machine that was tried; none leads anywhere."""
    seen: list[str] = []

    def forbid(owner: object, name: str) -> None:
        def refuse(*_: object, **__: object) -> None:
            seen.append(name)
            raise OSError("no network in this test")

        monkeypatch.setattr(owner, name, refuse)

    forbid(torch.hub, "download_url_to_file")
    forbid(torch.hub, "load_state_dict_from_url")
    forbid(importlib.import_module("urllib.request"), "urlopen")
    forbid(huggingface_hub, "hf_hub_download")
    forbid(socket.socket, "connect")
    forbid(socket, "getaddrinfo")
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of published weights in a cache, and a run on them, but no weights."""
    root = tmp_path_factory.mktemp("offline")
    for i in range(12):
        path = root / "pictures" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    begins = BACKBONES[NET].published(NET)["IMAGENET1K_V1"].hash_prefix
    key = replace(
        open_backbone(NET, weights="random:0", image_size=32).key(),
        weights="IMAGENET1K_V1",
        weights_sha256=begins + "0" * (64 - len(begins)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        images = open_images("pictures")
        cache = Cache("cache")
        cache.note_images(images)
        with create(cache.partial("pictures", key), key, to_digests(images.sha256), 512) as file:
            values = np.random.default_rng(0).standard_normal((len(images), 512), np.float32)
            file.write(np.arange(len(images)), values)
            file.finish(cache.path("pictures", key))
        assert run(["fit", "-q", "--head", "nearest_mean", "--folds", "2"]) == 0
    (made,) = (root / "reports" / "pictures").glob(f"{RUN}.*")
    made.rename(made.with_name(RUN))
    (root / "no.pth").write_bytes(b"no weights")
    return root


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_every_command_is_here() -> None:
    leaves = set()
    for name in set(COMMANDS) - MAY:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        below = command.commands if isinstance(command, click.Group) else None
        leaves |= {f"{name} {one}" for one in below} if below else {name}
    assert {
        leaf for leaf in leaves if not any(words.startswith(leaf) for words in OFFLINE)
    } == set()


@pytest.mark.parametrize("words", OFFLINE)
def test_no_other_command_uses_the_network(
    here: Path, attempts: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(words.split())
    captured = capsys.readouterr()
    assert attempts == []
    assert code == OFFLINE[words], captured.err


def test_those_that_may_do(here: Path, attempts: list[str]) -> None:
    assert run(["extract", "--data", "pictures", "--backbone", "vgg16"]) == 1
    assert run(["predict", RUN, "pictures"]) == 1
    assert attempts.count("download_url_to_file") == 2


def test_status_of_weights_that_are_not_at_hand(
    here: Path, attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backbone", f"{NET},vgg16", "--image-size", "32", "--precision", "fp32"]
    assert run(["cache", "status", *options]) == 0
    captured = capsys.readouterr()
    assert f"{NET}: HIT, 12 images" in captured.out  # by the digits that its file's name begins
    assert "vgg16: MISS, never extracted" in captured.out
    assert "vgg16: its weights IMAGENET1K_V1 are not at hand" in captured.err
    assert attempts == []


def test_a_backbone_without_weights_makes_no_network() -> None:
    with pytest.raises(WeightsError, match="not at hand"):
        open_backbone(NET, absent="name").build()
    with pytest.raises(WeightsError, match="not at hand"):
        open_backbone(NET, absent="refuse")
