"""Images and parts in a real object store's protocol, with a worker killed; needs moto and s3fs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .extracting import COMMAND, contents, wait_for_rows
from .machines import ROOT, Machines

pytestmark = pytest.mark.slow
pytest.importorskip("moto", reason='needs a server: pip install "moto[server]" s3fs')
pytest.importorskip("s3fs", reason='needs a server: pip install "moto[server]" s3fs')

# In a process of its own: the libraries' threads and warnings are none of the tests' business.
UPLOAD = """
import sys, s3fs
fs = s3fs.S3FileSystem()
fs.mkdir("bucket")
fs.put(sys.argv[1], "bucket/", recursive=True)
"""
LIST = "import s3fs; print(*s3fs.S3FileSystem().find('bucket/parts'))"


@pytest.fixture
def s3(many: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which s3://bucket/many holds the images."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key",
           "AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        for _ in range(600):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        subprocess.run(
            [sys.executable, "-c", UPLOAD, str(many)], env={**os.environ, **env}, check=True
        )
        yield env
    finally:
        server.kill()
        server.wait()


def test_a_worker_is_killed(
    s3: dict[str, str], wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    """Workers see neither the images nor the cache as files; the bits are those of one machine."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    (tmp_path / "here").mkdir()
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        for _ in range(2):
            machines.start_worker(**s3)
        child = subprocess.Popen(
            [*COMMAND, "--data", "s3://bucket/many", "--cache", "/proc/self/cwd/cache",
             "--dask", str(machines.file), "--parts", "s3://bucket/parts"],
            cwd=tmp_path / "here", env={**os.environ, **s3, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_rows(child, tmp_path / "here" / "cache", 100)
        machines.workers[0].kill()
        _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert "done again" in said
    assert contents(tmp_path / "here" / "cache") == wanted
    listed = subprocess.run([sys.executable, "-c", LIST], env={**os.environ, **s3}, check=True,
                            capture_output=True, text=True)  # fmt: skip
    assert listed.stdout.strip() == ""
    written = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert not [path for path in written if b"SECRET" in path.read_bytes()]
