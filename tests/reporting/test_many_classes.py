"""Many classes: probabilities in a file of their own, and pages that say what they leave out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from stored import store

import featcache as fc
from featcache.errors import DataError
from featcache.fitting import fold, metrics
from featcache.fitting.metrics import METRICS, scores
from featcache.reporting import predictions
from featcache.reporting.plots import confusion as plots
from featcache.reporting.plots.curves import GRID, Ranks
from featcache.reporting.predictions import PROBABILITIES, read_outcomes
from featcache.reporting.run_page import write_run_page
from featcache.reporting.run_reader import read_contents

CLASSES, ROWS = 24, 120


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_many(monkeypatch)


def as_if_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 classes are many."""
    for module in (metrics, plots):
        monkeypatch.setattr(module, "MANY_CLASSES", 10)
    monkeypatch.setattr("featcache.reporting.run_page.MANY_CLASSES", 10)
    monkeypatch.setattr(plots, "_SHOWN", 6)
    for module in (fold, predictions):
        monkeypatch.setattr(module, "MANY_PROBABILITIES", 500)


def fitted(folder: Path) -> fc.Comparison:
    y = np.repeat(np.arange(CLASSES), ROWS // CLASSES)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(CLASSES, 8))[y] + rng.normal(size=(ROWS, 8)) / 2
    cache, images = store(folder / "cache", X.astype("f4"), [f"class {i:02d}" for i in y], (8,))
    features = cache.features(images, cache.choose("toy", ["net0"]))
    return fc.compare(
        features, head="nearest_mean", folds=3, reports=folder / "reports", cache=folder / "cache"
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(tmp_path_factory.mktemp("small")).best.folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_if_many(monkeypatch)
        return fitted(tmp_path_factory.mktemp("many")).best.folder


@pytest.fixture
def run(few: None, many: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(many, tmp_path / "reports" / "toy" / many.name))


def test_few_probabilities_stay_in_the_table(small: Path) -> None:
    assert "p_class 00" in (small / "predictions.csv").read_text().splitlines()[0]
    assert not (small / PROBABILITIES).exists()


def test_many_have_a_file_and_say_the_same(small: Path, many: Path) -> None:
    few, more = read_contents(small), read_contents(many)
    head = (many / "predictions.csv").read_text().splitlines()[0]
    assert head == "id,fold,true,pred"
    assert (many / PROBABILITIES).stat().st_size < ROWS * CLASSES * 4 + 8192
    assert more.proba is not None
    assert few.proba is not None
    assert more.proba.dtype == np.float32
    np.testing.assert_allclose(more.proba, few.proba, rtol=1e-4, atol=1e-6)
    assert (more.pred == few.pred).all()
    for name, value in few.run.metrics.items():
        assert more.run.metrics[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_they_are_ranked_and_tested_by_what_the_file_says(
    small: Path, many: Path, metric: str
) -> None:
    few, more = (read_outcomes(one / "predictions.csv", METRICS[metric]) for one in (small, many))
    assert (more.ids == few.ids).all()
    np.testing.assert_allclose(more.score, few.score, rtol=1e-4, atol=1e-5)


def test_the_page_says_what_it_leaves_out(many: Path) -> None:
    page, run = (many / "report.html").read_text(), many
    assert "Confusion among the 6 of 24 classes with the most mistakes" in page
    assert "the 10 of 24 with the lowest F1" in page
    assert "The first 10 of 24 classes" in page
    assert PROBABILITIES in page
    assert (run / "per_class.csv").read_text().count("\n") == CLASSES + 1
    for name in ("roc", "pr", "reliability", "confusion"):
        assert (run / f"{name}.png").is_file()


def test_the_classes_shown_are_those_with_most_mistakes(run: Path) -> None:
    contents = read_contents(run)
    found, whole = plots.confusion(contents), confusion_matrix(contents.true, contents.pred)
    mistakes = whole.sum(axis=0) + whole.sum(axis=1) - 2 * np.diag(whole)
    kept = [contents.classes.index(name) for name in found.classes]
    assert sorted(mistakes[kept]) == sorted(mistakes)[-6:]
    assert (found.counts == whole[np.ix_(kept, kept)]).all()
    assert (found.images == whole.sum(axis=1)[kept]).all()


def test_metrics_of_many_classes_are_sklearn_s(few: None) -> None:
    rng = np.random.default_rng(0)
    classes = [f"c{i:02d}" for i in range(CLASSES)]
    proba = rng.dirichlet(np.ones(CLASSES), ROWS).round(2) + 1e-3
    proba /= proba.sum(axis=1, keepdims=True)
    true = np.array(classes)[rng.permutation(ROWS) % CLASSES]
    pred = np.array(classes)[proba.argmax(1)]
    found = scores(true, pred, proba, classes)
    assert found["auc"] == pytest.approx(
        roc_auc_score(true, proba, multi_class="ovr", labels=classes), abs=1e-12
    )
    assert found["log_loss"] == pytest.approx(log_loss(true, proba, labels=classes), abs=1e-12)
    assert found["f1"] == f1_score(true, pred, average="macro", zero_division=0)


@pytest.mark.parametrize("ties", [False, True])
def test_curves_are_sklearn_s(ties: bool) -> None:
    rng = np.random.default_rng(2)
    is_class = rng.random(300) < 0.1
    score = rng.normal(size=300) + is_class
    score = score.round(1) if ties else score
    ranks = Ranks.of(is_class, score)
    false, true, _ = roc_curve(is_class, score)
    np.testing.assert_allclose(ranks.roc()[1:], np.interp(GRID, false, true)[1:], atol=1e-12)
    assert ranks.roc_area() == pytest.approx(roc_auc_score(is_class, score), abs=1e-12)
    precision, recall, _ = precision_recall_curve(is_class, score)
    best = [precision[recall >= value].max() for value in GRID]
    np.testing.assert_allclose(ranks.precision(), best, atol=1e-12)
    assert ranks.precision_area() == pytest.approx(
        average_precision_score(is_class, score), abs=1e-12
    )


# Read as somebody else's.


def other_classes(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["classes"][...] = file["classes"][...][::-1]


def elsewhere(path: Path) -> None:
    path.with_name("other.h5").write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["proba"]
        file["proba"] = h5py.ExternalLink("other.h5", "proba")


@pytest.mark.parametrize(
    "damage",
    [
        other_classes,
        elsewhere,
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
        lambda path: path.write_bytes(b"\x89HDX" + path.read_bytes()[4:]),
        lambda path: path.write_text("no file of HDF5"),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_file_is_refused_with_the_command_that_makes_it(run: Path, damage) -> None:
    damage(run / PROBABILITIES)
    with pytest.raises(DataError, match=r"probabilities\.h5") as caught:
        read_contents(run)
    assert "featcache fit" in caught.value.remedy
    assert read_contents(run, probabilities=False).proba is None


def test_of_another_run_it_is_refused(run: Path) -> None:
    path = run / "predictions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match=r"has 120 rows, predictions\.csv 119"):
        write_run_page(run)


def test_without_the_file_there_are_no_probabilities(run: Path) -> None:
    (run / PROBABILITIES).unlink()
    assert read_contents(run).proba is None
    write_run_page(run)
    assert json.loads((run / "metrics.json").read_text())["mean"]["auc"] > 0.5
