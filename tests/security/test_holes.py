"""Files of holes: a disk of some kilobytes holds what says that it has hundreds of gigabytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from stored import blobs, store

from featcache.store.key import Key

HUGE = 625_000_000_000
KEY = Key("net0", "test", "none", "none", "penultimate", {"view": "none"})


def laid_out(rows: int, dim: int) -> Callable[[Path], None]:
    """A feature file as ours are, with holes for its rows."""

    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.attrs.update({"format": 1, "key": KEY.json(), "complete": True})
            shapes = {"features": (rows, dim), "sha256": (rows, 32), "done": (rows,),
                      "checksum": (rows,)}  # fmt: skip
            for name, shape in shapes.items():
                layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                kind = {"features": "float32", "checksum": "uint32"}.get(name, "uint8")
                file.create_dataset(name, shape, kind, dcpl=layout)

    return make


def hole(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, HUGE)


def sealed_hole(path: Path) -> None:
    hole(path)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"featcache seal 1" + bytes(96))


FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "many rows": ("features", laid_out(HUGE // 41, 1)),
    "wide rows": ("features", laid_out(1, HUGE // 4)),
    "rows not too wide": ("features", laid_out(8, 2**24)),
    "no HDF5": ("features", hole),
    "a seal": ("features", sealed_hole),
    "list": ("images.csv", hole),
    "failures": ("failed.csv", hole),
    "origin": ("origin.json", hole),
    "verdicts": ("../.canary.json", hole),
}


# Commands, in a process that may take 0.4 GB more than it has when all is imported.
CODE = """
import resource, sys
sys.path[:0] = ["tests", "."]
from pathlib import Path
import psutil, sklearn.cluster, torch
from click.testing import CliRunner
from featcache.cli.main import cli
from featcache.errors import FeatcacheError
from featcache.extraction.canary import Question

resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 400_000_000,) * 2)
for folder in map(Path, sys.argv[1:]):
    for words in ("ls", "verify", f"export {folder}/x.npz"):
        done = CliRunner().invoke(cli, ["cache", *words.split(), "--cache", f"{folder}/cache"])
        assert isinstance(done.exception, (FeatcacheError, SystemExit, type(None))), \\
            (folder.name, words, done.exception)
    Question("a", "b", "c", "d", "e", ()).recall(folder / "cache")
"""


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="no files of holes here")
def test_they_exhaust_no_memory(tmp_path: Path) -> None:
    X, y = blobs(60, (6, 4))
    for kind, (name, make) in FILES.items():
        cache, _ = store(tmp_path / kind / "cache", X, y, (6, 4))
        path = next((cache.folder / "toy").glob("net0.*.h5"))
        make(path if name == "features" else cache.folder / "toy" / name)
    done = subprocess.run(
        [sys.executable, "-c", CODE, *(str(tmp_path / kind) for kind in FILES)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
