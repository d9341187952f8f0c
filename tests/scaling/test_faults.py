"""Kills in the middle of it, of every kind of process; what is done is never done again."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from fitting.conftest import make_features
from noise import noise

from featcache.errors import CacheRefused, ClusterError
from featcache.reporting.compare import compare
from featcache.scaling.cluster import Cluster
from featcache.scaling.fitting import fit_on
from featcache.store.features import Features
from featcache.store.file import FeatureFile

from .machines import Machines
from .test_extraction import contents
from .test_fitting import scores

pytestmark = pytest.mark.slow

IMAGES = 600
COMMAND = [
    sys.executable, "-m", "featcache", "extract", "--backbone", "resnet18", "--weights", "random:0",
    "--image-size", "96", "-b", "8", "-j", "1", "--device", "cpu",
]  # fmt: skip
OTHER_VERSION = "import torch\ntorch.__version__ = '1.0.0'\n"
OTHER_VECTORS = """
from featcache.extraction.preprocess import Preprocess
if not hasattr(Preprocess, "plain_cut"):  # a preload is run twice
    Preprocess.plain_cut = Preprocess.cut
    Preprocess.cut = lambda self, image: 255 - self.plain_cut(image)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "many"
    for i in range(IMAGES):
        path = root / f"class{i % 3}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    return root


@pytest.fixture(scope="module")
def wanted(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    cache = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([*COMMAND, "--data", str(many), "--cache", str(cache)], check=True)
    return contents(cache)


def start(many: Path, cache: Path, where: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--data", str(many), "--cache", str(cache), "--dask", where],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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
    assert re.search(r"[1-9]\d* ranges lost their worker", said)


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
        return {"head": "mlp", "folds": 4, "singles": True, "settings": {"mlp.epochs": 60}}

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
                fit_on(cluster, lambda jobs: jobs)

    def test_workers_are_killed(self, features: Features, tmp_path: Path) -> None:
        compare(features, reports=tmp_path / "one", **self.options())
        with Machines(tmp_path / "machines") as machines:
            machines.start_scheduler()
            machines.start_worker()
            machines.start_worker()
            killer = Timer(1.0, lambda: [machines.kill_worker(0), machines.kill_worker(1)])
            with Cluster(str(machines.file)) as cluster:
                fitted: list[Any] = []

                def hear(number: int, count: int, run: Any) -> None:
                    fitted.append(number)
                    if len(fitted) == 1:
                        killer.start()

                fit_on(cluster, lambda n: compare(features, reports=tmp_path / "many", jobs=n,
                                                  fitted=hear, **self.options()))  # fmt: skip
            killer.join()
        assert scores(tmp_path / "many") == scores(tmp_path / "one")

    def test_the_scheduler_is_killed(self, features: Features, tmp_path: Path) -> None:
        with Machines(tmp_path / "machines") as machines:
            machines.start_scheduler()
            machines.start_worker()
            assert machines.scheduler is not None
            killer = Timer(0, machines.scheduler.kill)
            with Cluster(str(machines.file)) as cluster:
                started = time.monotonic()
                with pytest.raises(ClusterError, match="is gone"):
                    fit_on(cluster, lambda n: compare(
                        features, reports=tmp_path / "many", jobs=n,
                        fitted=lambda *_: killer.start() if killer.ident is None else None,
                        **self.options(),
                    ))  # fmt: skip
                assert time.monotonic() - started < 120
            machines.scheduler.wait()
        compare(features, reports=tmp_path / "many", **self.options())  # goes on without it
        assert len(scores(tmp_path / "many")) == 3
