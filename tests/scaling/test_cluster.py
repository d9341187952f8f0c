"""Which cluster is meant, and what is said where there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from featcache.cli.main import run
from featcache.errors import RecipeError
from featcache.scaling import cluster
from featcache.scaling.cluster import Cluster


@pytest.mark.parametrize("where", ["local:0", "local:", "local:x", "local", "nowhere", "", "8786"])
def test_what_is_no_cluster_is_refused(where: str) -> None:
    with pytest.raises(RecipeError, match=f"no cluster '{where}'"):
        Cluster(where)


@pytest.mark.parametrize("where", ["tcp://head:8786", "tls://head:8786", "local:2"])
def test_what_is_one_is_not_reached_before_it_is_needed(where: str) -> None:
    with Cluster(where) as there:
        assert there.local == (where == "local:2")


def test_a_scheduler_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "scheduler.json").write_text("{}")
    assert not Cluster(str(tmp_path / "scheduler.json")).local


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(RecipeError, match="there is no GPU"):
        Cluster("local:gpus")


@pytest.mark.parametrize(("named", "expected"), [("", ["0", "1", "2"]), ("4,7,1", ["4", "7", "1"])])
def test_each_gpu_has_a_worker_that_sees_no_other(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = cluster._workers("local:gpus", 2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == expected
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert [Cluster(f"local:{n}").threads for n in (1, 5, 40)] == [12, 2, 1]
    assert Cluster("tcp://head:8786").threads == 0


def test_without_dask_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "distributed" else find(name)
    )
    command = ["extract", "--backbone", "resnet18", "--cache", str(tmp_path), "--dask", "local:2"]
    assert run(command) == 2
    assert 'pip install "featcache[dask]"' in capsys.readouterr().err
