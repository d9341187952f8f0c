"""Ctrl-C on the real command: what is done is kept, and the same command goes on from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from noise import noise

from featcache.store.feature_file import FeatureFile

IMAGES = 96
COMMAND = [
    sys.executable, "-m", "featcache", "extract", "--backbone", "resnet18",
    "--weights", "random:0", "--image-size", "128", "-b", "8", "--data", "photos",
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.usefixtures("_children_hear_ctrl_c")
def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    for i in range(IMAGES):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    with subprocess.Popen(
        COMMAND, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        _wait_for_rows(tmp_path, 24)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "kept" in err
    assert "Traceback" not in err
    (partial,) = tmp_path.glob("cache/photos/.*.partial")
    with FeatureFile(partial) as file:
        kept = int(file.done().sum())
        assert kept == file.good().sum() >= 24
    again = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = re.search(rf"{IMAGES} vectors, (\d+) computed", again.stdout)
    assert found is not None
    assert int(found[1]) == IMAGES - kept


def _wait_for_rows(folder: Path, rows: int) -> None:
    for _ in range(6000):
        time.sleep(0.02)
        for partial in folder.glob("cache/photos/.*.partial"):
            with FeatureFile(partial) as file:
                if file.done().sum() >= rows:
                    return
    raise AssertionError("the extraction never began")
