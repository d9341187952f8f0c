"""Images to embed, and two machines to do it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from noise import noise

from .extracting import COMMAND, IMAGES, contents
from .machines import Machines


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the extra there is no cluster."""
    if find_spec("distributed") is None:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="distributed is not installed"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images in three classes, of which two can't be decoded and two are equal."""
    root = tmp_path_factory.mktemp("scaling") / "photos"
    for i in range(72):
        path = root / ("cat", "dog", "owl")[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i if i != 50 else 3).save(path)
    for name in ("cat/30.png", "owl/71.png"):
        (root / name).write_bytes(b"no image" + name.encode())
    return root


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two workers, up for all tests."""
    with Machines(tmp_path_factory.mktemp("machines")) as started:
        started.start_scheduler()
        started.start_worker()
        started.start_worker()
        yield started


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "many"
    for i in range(IMAGES):
        path = root / f"class{i % 3}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    return root


@pytest.fixture(scope="session")
def wanted(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    cache = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([*COMMAND, "--data", str(many), "--cache", str(cache)], check=True)
    return contents(cache)
