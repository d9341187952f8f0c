"""--memory: features that a fit has no room for stay on disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stored import blobs, store

from featcache.cli.main import run
from featcache.reporting.compare import compare
from featcache.store.cache import Cache


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cache of 240 images, two backbones and a view of each."""
    monkeypatch.chdir(tmp_path)
    X, y = blobs(240, signal=0.6)
    split = ["test" if i % 4 == 0 else "train" for i in range(240)]
    store(tmp_path / "cache", X, y, (6, 4), "float16", split=split, views=("hflip",), absent=(5,))
    return tmp_path


def runs(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("reports/toy/*/run.json")]


def test_the_same_scores_with_and_without_room(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache("cache")
    features = cache.features(cache.images(), cache.choose("toy"), ["hflip"])
    loaded = compare(features, head="logreg", singles=False, reports="loaded").best
    options = ["--head", "logreg", "--view", "hflip", "--memory", "10KB"]
    assert run(["fit", *options, "--no-near-duplicates"]) == 0
    assert "480 rows of 10 columns" in capsys.readouterr().err
    (facts,) = runs(here)
    assert facts["streamed"] is True
    assert "streamed" not in json.loads((loaded.folder / "run.json").read_text())
    (folder,) = here.glob("reports/toy/*/model")
    assert folder.parent.name == loaded.folder.name  # the same run, not another
    scores = json.loads((folder.parent / "metrics.json").read_text())
    assert abs(scores["mean"]["accuracy"] - loaded.metric("accuracy")) <= 1 / 60


def test_compare_by_folds_with_the_report(here: Path) -> None:
    options = ["--head", "nearest_mean,dummy", "--fusion", "concat,vote", "--folds", "3"]
    assert run(["compare", *options, "--memory", "1KB", "-q"]) == 0
    assert len(runs(here)) == 8
    (page,) = here.glob("reports/toy/*/report.html")
    assert page.stat().st_size > 10_000
    assert (page.parent / "embedding.csv").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--head", "mlp,svm"], "the head svm needs all rows"),
        (["--head", "mlp", "--tune", "3"], "--tune needs all rows"),
        (["--head", "mlp", "--select", "anova:4"], "--select needs all rows"),
    ],
)
def test_what_can_t_be_streamed_is_refused_before_anything_is_fitted(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(["compare", *options, "--memory", "1KB"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--memory 64GB" in error
    assert not runs(here)


def test_what_is_no_size_is_a_usage_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "--memory", "lots"]) == 2
    assert "memory is 'lots'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("_children_hear_ctrl_c")
def test_an_interrupted_fit_leaves_nothing_half_done(here: Path) -> None:
    command = [sys.executable, "-m", "featcache", "fit", "--memory", "1KB", "--set",
               "head.epochs=100000", "--set", "head.patience=100000"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "stay on disk" in line:
                break
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert not runs(here)


_PEAK = """
import resource, sys
from featcache.cli.main import run
code = run(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for n in (2_000, 60_000):  # 1,024 columns: 8 and 246 MB
        X, y = blobs(n, (1024,), signal=0.1)
        store(tmp_path / f"{n}", X, y, (1024,), "float16",
              split=["test" if i % 5 == 0 else "train" for i in range(n)])  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, "fit", "--head", "mlp", "--set", "head.epochs=1",
             "--cache", str(tmp_path / f"{n}"), "--reports", str(tmp_path / f"r{n}"),
             "--memory", "1KB", "--no-near-duplicates", "-q"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout.split("peak")[1]) / 1024)  # MiB
        del X
    # Blocks and buffers, and a kilobyte a row for its names; in memory a gigabyte more.
    assert peaks[1] - peaks[0] < 450
