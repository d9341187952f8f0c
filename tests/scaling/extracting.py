"""A long extraction as a command of its own, and how far it has come."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import h5py

from featcache.errors import CacheRefused
from featcache.store.feature_file import FeatureFile

IMAGES = 600
COMMAND = [
    sys.executable, "-m", "featcache", "extract", "--backbone", "resnet18", "--weights", "random:0",
    "--image-size", "128", "-b", "8", "-j", "1", "--device", "cpu",
]  # fmt: skip


def rows_done(cache: Path) -> int:
    """In the file in progress, or the finished one."""
    found = 0
    for path in cache.glob("many/*.h5*"):
        if path.name.endswith((".h5", ".h5.partial")):
            try:
                with FeatureFile(path) as file:
                    found = max(found, int(file.done().sum()))
            except (CacheRefused, FileNotFoundError):  # it is being put in its place
                continue
    return found


def wait_for_rows(child: subprocess.Popen[str], cache: Path, rows: int) -> None:
    for _ in range(6000):
        if child.poll() is not None or rows_done(cache) >= rows:
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened")


def contents(cache: Path) -> dict[str, tuple[bytes, bytes]]:
    """The finished files' contents and vectors, as bytes."""
    found = {}
    for path in sorted(cache.glob("*/[!.]*.h5")):
        with h5py.File(path) as file:
            assert file.attrs["complete"]
            found[path.name] = (file["sha256"][...].tobytes(), file["features"][...].tobytes())
    return found
