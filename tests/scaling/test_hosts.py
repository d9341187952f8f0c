"""Hosts with a network each: what a process alone can't show, a cable that is pulled."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .extracting import COMMAND, contents, rows_done, wait_for_rows
from .hosts import Hosts, can_make_hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]


def start(hosts: Hosts, many: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*hosts.on("command"), *COMMAND, "--data", str(many), "--cache", str(cache), "--dask",
         str(hosts.file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """One worker of two; the scheduler takes one for lost after 25 s of silence."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "25s")
    with Hosts(tmp_path / "hosts", workers=2) as hosts:
        hosts.start_scheduler()
        hosts.start_worker()
        yield hosts


def test_the_file_is_that_of_one_machine(
    hosts: Hosts, many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    hosts.start_worker()
    child = start(hosts, many, tmp_path)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert "workers that helped: 2" in said
    assert contents(tmp_path) == wanted


def test_a_worker_s_cable_is_pulled(
    hosts: Hosts, many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    """It goes on embedding, and nobody hears of it: its range is done by another one."""
    child = start(hosts, many, tmp_path)
    wait_for_rows(child, tmp_path, 60)
    hosts.pull("worker0")
    hosts.start_worker()
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert "ranges that lost theirs: 0" not in said
    assert contents(tmp_path) == wanted


def test_it_is_plugged_in_again(
    hosts: Hosts, many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    child = start(hosts, many, tmp_path)
    wait_for_rows(child, tmp_path, 60)
    hosts.pull("worker0")
    time.sleep(35)
    hosts.plug("worker0")
    hosts.start_worker()
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert contents(tmp_path) == wanted


def test_the_command_s_cable_is_pulled(hosts: Hosts, many: Path, tmp_path: Path) -> None:
    child = start(hosts, many, tmp_path)
    wait_for_rows(child, tmp_path, 60)
    hosts.pull("command")
    _, said = child.communicate(timeout=300)
    assert child.returncode == 1, said
    assert "is gone" in said
    assert "Traceback" not in said
    assert rows_done(tmp_path) >= 60
