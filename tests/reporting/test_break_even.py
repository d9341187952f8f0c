from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.fitting.metrics import METRICS
from featcache.reporting.break_even import fits_to_break_even, verdicts
from featcache.reporting.schema import Score, read_run

from .conftest import make_features, make_run, own_split


@pytest.mark.parametrize(
    ("extraction", "cached", "tuned"), [(100, 2, 52), (99, 2, 52), (0, 1, 2), (10, 1, 3.5)]
)
def test_the_least_number_of_fits(extraction: float, cached: float, tuned: float) -> None:
    counted = next(n for n in range(1, 1000) if extraction + n * cached < n * tuned)
    assert fits_to_break_even(extraction, cached, tuned) == counted


def test_a_tuning_faster_than_a_fit_never_breaks_even() -> None:
    assert fits_to_break_even(10, 5, 5) is None


def _runs(tmp_path: Path, cost: dict | None = None, rivals: tuple = ("key0", "key1")) -> list:
    features = make_features()
    folds = own_split(80, 20)
    right = np.arange(80) % 4 > 0
    cached = make_run(tmp_path, features, folds, right, "mlp", seconds=2.0)
    better = np.arange(80) % 8 > 0
    tuned = make_run(tmp_path, features, folds, better, "mlp.finetuned", 52.0)
    if cost is not None:
        path = tuned.folder / "run.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({**facts, "stage": "finetuned", "cost": cost, "rivals": rivals}))
        tuned = read_run(tuned.folder)
    return [tuned, cached]


def test_what_is_said(tmp_path: Path) -> None:
    cost = {"gpu_seconds": 52.0, "joules": 7200.0, "extraction_seconds": 100.0}
    (said,) = verdicts(_runs(tmp_path, cost))
    assert "52 s (52 GPU-seconds), 2.0 Wh" in said
    assert "+15.0 points over big+small.concat.mlp" in said
    assert "paid for itself after 3 fits" in said


def test_the_gain_is_of_what_the_runs_are_ranked_by(tmp_path: Path) -> None:
    runs = _runs(tmp_path, {"extraction_seconds": 100.0})
    log_loss = METRICS["log_loss"]
    worse, better, none = (Score(log_loss, value, 0, 1) for value in (0.9, 0.5, float("nan")))
    tuned, cached = replace(runs[0], ranked=better), replace(runs[1], ranked=worse)
    (said,) = verdicts([tuned, cached])
    assert "gives +0.4000 nats of log loss over big+small.concat.mlp" in said
    rival = replace(cached, head="svm", ranked=Score(log_loss, 0.7, 0, 1))
    (said,) = verdicts([tuned, cached, rival])
    assert "gives +0.2000 nats of log loss over big+small.concat.svm" in said
    assert verdicts([replace(tuned, ranked=none), cached]) == []


def test_without_an_extraction_nothing_is_said_of_it(tmp_path: Path) -> None:
    (said,) = verdicts(_runs(tmp_path, {"extraction_seconds": None}))
    assert said.endswith("takes 2.0 s on cached features.")


def test_without_a_tuning_or_a_rival_nothing_is_said(tmp_path: Path) -> None:
    assert verdicts(_runs(tmp_path)) == []
    assert verdicts(_runs(tmp_path, {})[:1]) == []
    assert verdicts(_runs(tmp_path, {}, rivals=("key0", "other weights"))) == []
