"""Fits on workers that are real processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fitting.conftest import make_features

from featcache.errors import DataError
from featcache.reporting.compare import compare
from featcache.scaling.cluster import Cluster
from featcache.scaling.fitting import fit_on

from .machines import Machines

HEADS = ["logreg", "mlp"]
QUICK = {"mlp.epochs": 3, "mlp.hidden": [8]}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have their own tests."""
    for module in ("run_page", "comparison_page"):
        monkeypatch.setattr(f"featcache.reporting.{module}.draw", lambda *_: False)
    monkeypatch.setattr("featcache.reporting.comparison.plot_comparison", lambda *_: None)


def scores(reports: Path) -> dict[str, Any]:
    """Means, intervals and predictions of every run."""
    found: dict[str, Any] = {}
    for path in sorted(reports.glob("toy/*/metrics.json")):
        with (path.parent / "predictions.csv").open(newline="") as file:
            metrics = json.loads(path.read_text())
            kept = {name: metrics[name] for name in ("mean", "sd", "interval")}
            found[path.parent.name] = (kept, list(csv.reader(file)))
    return found


def test_the_scores_are_those_of_one_machine(machines: Machines, tmp_path: Path) -> None:
    features = make_features(n=90)
    options: dict[str, Any] = {"head": HEADS, "folds": 3, "settings": QUICK}
    compare(features, reports=tmp_path / "one", **options)
    with Cluster(str(machines.file)) as cluster:
        fit_on(cluster, lambda n: compare(features, reports=tmp_path / "many", jobs=n, **options))
    assert len(scores(tmp_path / "one")) == 6
    assert scores(tmp_path / "many") == scores(tmp_path / "one")


def test_an_error_in_a_fit_is_its_own(machines: Machines, tmp_path: Path) -> None:
    features = make_features(n=90)
    with Cluster(str(machines.file)) as cluster, pytest.raises(DataError, match="folds"):
        fit_on(cluster, lambda n: compare(features, reports=tmp_path, jobs=n, folds=80))
