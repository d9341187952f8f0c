"""The model's folder: it lists its files, and is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featcache.errors import DataError, FeatcacheError
from featcache.reporting.bundle import (
    FACTS,
    FOLDER,
    add_bundle,
    backbone_facts,
    read_facts,
    write_facts,
)
from featcache.store.key import Key

MINIMUM = {
    "kind": "features", "name": "a.b.c", "classes": ["x", "y"], "backbones": [], "parts": [],
    "trained_on": {"rows": 1, "what": "all rows, refitted"},
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    (folder / "weights").mkdir(parents=True)
    (folder / "pipeline.skops").write_bytes(b"12345")
    (folder / "weights" / "net.safetensors").write_bytes(b"67")
    write_facts(folder, MINIMUM)
    return folder


def test_every_file_is_listed_with_its_digest(bundle: Path) -> None:
    facts = read_facts(bundle)
    assert set(facts["files"]) == {"pipeline.skops", "weights/net.safetensors"}
    assert facts["files"]["pipeline.skops"]["bytes"] == 5
    assert facts["format"] == 1
    assert {name: facts[name] for name in MINIMUM} == MINIMUM


@pytest.mark.parametrize("name", ["pipeline.skops", "weights/net.safetensors"])
def test_a_changed_or_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"other")
    with pytest.raises(DataError, match=Path(name).name):
        read_facts(bundle)
    (bundle / name).unlink()
    with pytest.raises(DataError, match="missing"):
        read_facts(bundle)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "weights/../../secret", "link"])
def test_no_file_outside_is_looked_at(bundle: Path, name: str) -> None:
    secret = bundle.parent / "secret"
    secret.write_text("s")
    (bundle / "link").symlink_to(secret)
    facts = json.loads((bundle / FACTS).read_text())
    del facts["sha256"]
    facts["files"] = {name: {"sha256": "0" * 64, "bytes": 1}}
    (bundle / FACTS).write_text(json.dumps(facts))
    with pytest.raises(DataError, match="outside"):
        read_facts(bundle)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"format": 1}', '{"format": 1, "kind": 3}', "[" * 100_000]
)
def test_what_is_no_model_is_one_clear_error(bundle: Path, text: str) -> None:
    (bundle / FACTS).write_text(text)
    with pytest.raises(DataError, match=r"model\.json"):
        read_facts(bundle)


def test_a_model_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def good(folder: Path) -> None:
        write_facts(folder, MINIMUM)

    def bad(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    add_bundle(run, good)
    before = (run / FOLDER / FACTS).read_bytes()
    with pytest.raises(OSError, match="disk full"):
        add_bundle(run, bad)
    assert (run / FOLDER / FACTS).read_bytes() == before
    assert [path.name for path in run.iterdir()] == [FOLDER]


def test_what_can_t_be_kept_costs_the_model_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def strange(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise FeatcacheError("a Stranger can't be kept")

    add_bundle(tmp_path, strange)
    assert list(tmp_path.iterdir()) == []
    assert "Stranger" in caplog.text


def test_backbones_are_told_by_their_whole_keys() -> None:
    key = Key("resnet18", "torchvision", "local", "abc", "penultimate", {"crop": 8}, "bf16")
    (entry,) = backbone_facts(["resnet18@1234"], [512], [key.digest], [key])
    rebuilt = {**entry, "backbone": entry.pop("name")}
    digest, _, _ = (rebuilt.pop(name) for name in ("key", "dim", "selector"))
    rebuilt.pop("name")
    assert Key(**rebuilt).digest == digest == key.digest
    (unknown,) = backbone_facts(["a"], [3], ["d"], [])
    assert unknown == {"name": "a", "selector": "a", "key": None, "dim": 3}
