"""Fits on workers that are real processes."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitting.conftest import make_features
from sklearn.naive_bayes import GaussianNB
from stored import blobs, store

from featcache.errors import ClusterError, DataError, RecipeError
from featcache.reporting import run_folder
from featcache.reporting.compare import compare
from featcache.scaling import executors
from featcache.scaling.cluster import Cluster
from featcache.scaling.executors import DaskExecutor

from .machines import Machines

QUICK = {"mlp.epochs": 3, "mlp.hidden": [8], "attention.epochs": 2}
GRID: dict[str, Any] = {
    "fusion": ["concat", "attention", "vote"], "head": ["logreg", "mlp"], "settings": QUICK,
}  # fmt: skip
_TIMED = ("seconds", "created")
_SHOWN = {".png", ".svg", ".html", ".skops"}  # plots; an archive has the time in it


@pytest.fixture
def cluster(machines: Machines) -> Iterator[Cluster]:
    with Cluster(str(machines.file)) as opened:
        yield opened


def scores(reports: Path) -> dict[str, Any]:
    """All that is in the run folders but what was measured of time and memory.

    With folds only the best has a model, and of equals that is the quicker one: it is left out.
    """
    found: dict[str, Any] = {}
    for path in sorted(reports.glob("toy/*/**/*")):
        folder = reports / path.relative_to(reports).parents[-3]
        alone = json.loads((folder / "run.json").read_text())["split"] == "test split"
        plain = path.suffix not in _SHOWN and path.name != "model.json"
        if path.is_file() and plain and (alone or path.parent.name != "model"):
            data = path.read_bytes()
            timed = path.suffix == ".json"
            found[str(path.relative_to(reports))] = untimed(json.loads(data)) if timed else data
    assert any(name.endswith("predictions.csv") for name in found)
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(word in k for word in _TIMED)}
        return {name: untimed(inside) for name, inside in kept.items()}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def test_an_object_of_the_users_travels(cluster: Cluster, tmp_path: Path) -> None:
    options: dict[str, Any] = {"head": GaussianNB(var_smoothing=0.1), "folds": 2}
    features = make_features(n=60, blocks=(6, 4))
    one = compare(features, reports=tmp_path / "one", **options)
    many = compare(features, reports=tmp_path / "many", crew=DaskExecutor(cluster), **options)
    assert {run.name: run.metrics for run in many} == {run.name: run.metrics for run in one}


@pytest.mark.parametrize("split", [None, ["train"] * 60 + ["test"] * 30], ids=["folds", "split"])
def test_run_folders_are_those_of_one_process(
    cluster: Cluster, tmp_path: Path, split: list[str] | None
) -> None:
    features = make_features(n=90, blocks=(6, 4), signal=0.7, split=split)
    options = GRID | ({"folds": 2} if split is None else {"fusion": "vote", "head": ["mlp", "svm"]})
    one = compare(features, reports=tmp_path / "one", **options)
    told: list[Any] = []
    many = compare(features, reports=tmp_path / "many", crew=DaskExecutor(cluster), **options,
                   fitted=lambda *facts: told.append(facts))  # fmt: skip
    assert scores(tmp_path / "many") == scores(tmp_path / "one")
    names = [run.name for run in one]
    assert sorted(run.name for run in many) == sorted(names)
    assert sorted(run.name for _, _, run in told) == sorted(names)
    assert [(number, count) for number, count, _ in told] == [
        (i, len(names)) for i in range(1, len(names) + 1)
    ]
    told.clear()
    # What is in run folders needs no worker.
    compare(features, reports=tmp_path / "many", crew=Idle(), **options,
            fitted=lambda *facts: told.append(facts))  # fmt: skip
    assert len(told) == len(names)


class Idle:
    here = 0

    def run(self, context: Any, next_task: Any) -> Generator[Any]:
        assert next_task() is None
        yield from ()


def test_the_features_are_sent_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    scatter = cluster.client.scatter

    def noted(data: Any, **how: Any) -> Any:
        sent.append((data, how))
        return scatter(data, **how)

    monkeypatch.setattr(cluster.client, "scatter", noted)
    features = make_features(n=90)
    options: dict[str, Any] = {"head": ["logreg", "nearest_mean", "dummy"], "folds": 3}
    compare(features, reports=tmp_path, crew=DaskExecutor(cluster), **options)
    whole = [how for data, how in sent if not isinstance(data, list)]
    assert whole == [{"broadcast": True, "hash": False}]


def test_rows_on_disk_are_read_by_the_workers(cluster: Cluster, tmp_path: Path) -> None:
    X, y = blobs(n=90, signal=0.7)
    cache, images = store(tmp_path / "cache", X, y, (6, 4))
    lazy = cache.features(images, cache.choose("toy", []), lazy=True)
    compare(lazy, reports=tmp_path / "one", folds=2, **GRID)
    compare(lazy, reports=tmp_path / "many", folds=2, crew=DaskExecutor(cluster), **GRID)
    found = scores(tmp_path / "many")
    assert found == scores(tmp_path / "one")
    assert next(v for k, v in found.items() if k.endswith("run.json"))["streamed"] is True


def test_an_error_in_a_fit_is_its_own(cluster: Cluster, tmp_path: Path) -> None:
    features = make_features(n=90)
    executor = DaskExecutor(cluster)
    with pytest.raises(DataError, match="folds"):
        compare(features, reports=tmp_path, crew=executor, folds=80)
    with pytest.raises(RecipeError, match="can't be fitted") as caught:
        compare(features, reports=tmp_path, crew=executor, folds=3, head=["logreg", "svm"],
                settings={"svm.C": -1.0})  # fmt: skip
    assert "--set" in caught.value.remedy
    # The cluster is as before, and what was fitted stands.
    done = compare(features, reports=tmp_path, crew=executor, folds=3, head=["logreg"])
    assert len(done.runs) == 3


UNREADABLE = """
from featcache.errors import CacheRefused
from featcache.store import lazy
def read(self, *_):
    raise CacheRefused(f"{self.path} can't be read: No such file or directory", "Run it again.")
lazy._File.read = read
"""


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_cache_is_refused(tmp_path: Path) -> None:
    X, y = blobs(n=90)
    cache, images = store(tmp_path / "cache", X, y, (6, 4))
    lazy = cache.features(images, cache.choose("toy", []), lazy=True)
    with Machines(tmp_path / "machines") as machines:
        machines.start_scheduler()
        machines.start_worker(UNREADABLE)
        with (
            Cluster(str(machines.file)) as cluster,
            pytest.raises(ClusterError, match=r"can't read the features: .*No such") as caught,
        ):
            compare(lazy, reports=tmp_path / "reports", head="logreg", crew=DaskExecutor(cluster))
    assert "same path" in caught.value.remedy


@pytest.mark.slow
def test_the_features_are_mapped_by_workers_here(tmp_path: Path) -> None:
    """`local:2`: what each holds is the file of the command's, not a copy."""
    features = make_features(n=90)
    with Cluster("local:2") as cluster:
        executor = DaskExecutor(cluster)
        assert executor.here == 2
        seen: list[bool] = []

        class Listening(DaskExecutor):
            def run(self, context: Any, next_task: Any) -> Generator[Any]:
                future = cluster.client.scatter(context, broadcast=True, hash=False)
                seen.append(cluster.client.submit(_maps, future).result())
                yield from super().run(context, next_task)

        compare(features, reports=tmp_path / "one", head="logreg", folds=2)
        compare(features, reports=tmp_path / "many", head="logreg", folds=2,
                crew=Listening(cluster))  # fmt: skip
    assert seen == [True]
    assert scores(tmp_path / "many") == scores(tmp_path / "one")


def _maps(context: Any) -> bool:
    return isinstance(context.features.X, np.memmap)


def test_a_machine_without_xgboost_is_told_from_one_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> str:
        if name == "xgboost":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(run_folder, "version", absent)
    found = executors._look(None)
    assert (found["xgboost"], found["scikit-learn"]) == ("none", "1.0")
