"""Kills in the middle of it, of every kind of process; what is done is never done again."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from fitting.conftest import make_features

from featcache.errors import ClusterError
from featcache.reporting.compare import compare
from featcache.scaling.cluster import Cluster
from featcache.scaling.executors import DaskExecutor
from featcache.store.features import Features

from .extracting import COMMAND, IMAGES, contents, rows_done, wait_for_rows
from .machines import Machines
from .test_fitting import scores

pytestmark = pytest.mark.slow

OTHER_VERSION = "import torch\ntorch.__version__ = '1.0.0'\n"
OTHER_VECTORS = """
from featcache.extraction.preprocess import Preprocess
if not hasattr(Preprocess, "plain_cut"):  # a preload is run twice
    Preprocess.plain_cut = Preprocess.cut
    Preprocess.cut = lambda self, image: 255 - self.plain_cut(image)
"""


def start(many: Path, cache: Path, where: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--data", str(many), "--cache", str(cache), "--dask", where],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_workers_killed_at_random(
    many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    rng, kills = random.Random(0), 0
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        for _ in range(2):
            machines.start_worker()
        child = start(many, tmp_path, str(machines.file))
        while child.poll() is None and kills < 8:
            wait_for_rows(child, tmp_path, 20 + 60 * kills)
            time.sleep(rng.uniform(0, 0.5))
            machines.kill_worker(rng.randrange(2))
            kills += 1
        _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert contents(tmp_path) == wanted
    assert kills > 2
    assert re.search(r"ranges that lost theirs: [1-9]", said)


def test_the_client_is_killed(
    many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    """What its workers go on to finish is found again, too."""
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        for _ in range(2):
            machines.start_worker()
        child = start(many, tmp_path, str(machines.file))
        wait_for_rows(child, tmp_path, 100)
        child.kill()
        child.communicate()
        kept = rows_done(tmp_path)
        assert 100 <= kept < IMAGES
        again = start(many, tmp_path, str(machines.file))
        out, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    computed = re.search(r"vectors, (\d+) computed", out)
    assert computed is not None
    assert int(computed[1]) <= IMAGES - kept
    assert contents(tmp_path) == wanted


def test_the_scheduler_is_killed(
    many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        machines.start_worker()
        child = start(many, tmp_path, str(machines.file))
        wait_for_rows(child, tmp_path, 60)
        assert machines.scheduler is not None
        machines.scheduler.kill()
        machines.scheduler.wait()
        _, said = child.communicate(timeout=120)
        assert child.returncode == 1, said
        assert "is gone" in said
        assert "What is done is kept" in said
        assert "Traceback" not in said
        kept = rows_done(tmp_path)
        assert 60 <= kept < IMAGES
        machines.start_scheduler()
        machines.start_worker()
        again = start(many, tmp_path, str(machines.file))
        out, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert contents(tmp_path) == wanted
    computed = re.search(r"vectors, (\d+) computed", out)
    assert computed is not None
    assert int(computed[1]) <= IMAGES - kept


def test_two_clusters_on_one_cache(many: Path, tmp_path: Path) -> None:
    first = start(many, tmp_path, "local:1")
    wait_for_rows(first, tmp_path, 20)
    first.send_signal(signal.SIGSTOP)  # it can't finish in the meantime
    second = start(many, tmp_path, "local:1")
    _, said = second.communicate(timeout=120)
    assert second.returncode == 4, said
    assert "another process is writing" in said
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    ("preload", "reason"),
    [
        (OTHER_VECTORS, "its vectors of resnet18 differ: cosine"),
        (OTHER_VERSION, "it has torch 1.0.0"),
    ],
)
def test_a_worker_that_is_another_is_left_out(
    many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path, preload: str, reason: str
) -> None:
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        machines.start_worker()
        machines.start_worker(preload)
        child = start(many, tmp_path, str(machines.file))
        _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert f"gets nothing to do: {reason}" in said
    assert contents(tmp_path) == wanted


def test_no_worker_may_help(many: Path, tmp_path: Path) -> None:
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        machines.start_worker(OTHER_VECTORS)
        child = start(many, tmp_path, str(machines.file))
        _, said = child.communicate(timeout=300)
    assert child.returncode == 1, said
    assert "none of the 1 workers" in said
    assert "differ: cosine" in said


def test_workers_here(many: Path, wanted: dict[str, tuple[bytes, bytes]], tmp_path: Path) -> None:
    """`local:2`, one of which is killed: its nanny starts another."""
    import psutil

    child = start(many, tmp_path, "local:2")
    wait_for_rows(child, tmp_path, 40)
    for process in psutil.Process(child.pid).children():
        if "spawn_main" in " ".join(process.cmdline()):
            process.kill()
            break
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert contents(tmp_path) == wanted
    assert "Traceback" not in said


class TestFits:
    @pytest.fixture
    def features(self) -> Features:
        return make_features(n=240)

    def options(self) -> dict[str, Any]:
        """Some seconds of training."""
        return {
            "fusion": ["concat", "vote"], "head": "mlp", "folds": 4, "settings": {"mlp.epochs": 60},
        }  # fmt: skip

    def test_a_worker_of_another_version_is_refused(self, tmp_path: Path) -> None:
        with Machines(tmp_path) as machines:
            machines.start_scheduler()
            machines.start_worker(OTHER_VERSION)
            with (
                Cluster(str(machines.file)) as cluster,
                pytest.raises(
                    ClusterError, match=r"would fit otherwise: it has torch 1\.0\.0, not"
                ),
            ):
                compare(make_features(), reports=tmp_path, crew=DaskExecutor(cluster))

    @pytest.mark.parametrize("which", [[0], [0, 1]], ids=["one", "both"])
    def test_workers_are_killed(self, features: Features, tmp_path: Path, which: list[int]) -> None:
        compare(features, reports=tmp_path / "one", **self.options())
        with Machines(tmp_path / "machines") as machines:
            machines.start_scheduler()
            machines.start_worker()
            machines.start_worker()
            killer = Timer(1.0, lambda: [machines.kill_worker(number) for number in which])
            with Cluster(str(machines.file)) as cluster:
                fitted: list[Any] = []

                def hear(number: int, count: int, run: Any) -> None:
                    fitted.append(number)
                    if len(fitted) == 1:
                        killer.start()

                compare(
                    features, reports=tmp_path / "many", crew=DaskExecutor(cluster), fitted=hear,
                    **self.options(),
                )  # fmt: skip
            killer.join()
        assert scores(tmp_path / "many") == scores(tmp_path / "one")

    def test_the_scheduler_is_killed(self, features: Features, tmp_path: Path) -> None:
        with Machines(tmp_path / "machines") as machines:
            machines.start_scheduler()
            machines.start_worker()
            assert machines.scheduler is not None
            killer = Timer(0, machines.scheduler.kill)
            with (
                Cluster(str(machines.file)) as cluster,
                pytest.raises(ClusterError, match="is gone"),
            ):
                compare(
                    features, reports=tmp_path / "many", crew=DaskExecutor(cluster),
                    fitted=lambda *_: killer.start() if killer.ident is None else None,
                    **self.options(),
                )  # fmt: skip
            machines.scheduler.wait()
        compare(features, reports=tmp_path / "many", **self.options())  # goes on without it
        compare(features, reports=tmp_path / "one", **self.options())
        assert scores(tmp_path / "many") == scores(tmp_path / "one")
