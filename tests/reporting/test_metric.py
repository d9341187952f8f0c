"""Candidates ranked by another metric than the accuracy: value, interval, test, winner, page."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, log_loss, roc_auc_score

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.metrics import METRICS, interval, row_scores, scores
from featcache.fitting.significance import compare_all
from featcache.reporting.ablation import ablation
from featcache.reporting.compare import compare
from featcache.reporting.comparison import COLUMNS, sort_runs, write_comparison
from featcache.reporting.run_folder import save_run
from featcache.reporting.schema import rows_digest
from featcache.reporting.ties import verdict

from .conftest import CLASSES, make_features, make_result, own_split

N, TESTED = 500, 300
PROBA: dict[str, np.ndarray] = {}


def run_of(reports, head, proba, seconds=1.0, features=None):
    """A run that gives "dog" these probabilities (n,), or none."""
    features = make_features(N) if features is None else features
    split = own_split(N, TESTED)
    result = make_result(features, split, np.ones(N, bool), head, seconds)
    (fold,) = result.folds
    own = proba[split[0].test]
    table = np.stack([1 - own, own], axis=1)
    pred = np.array(CLASSES)[table.argmax(axis=1)]
    fold = replace(fold, pred=pred, proba=table, metrics=scores(fold.true, pred, table, CLASSES))
    result = replace(
        result, folds=[fold], positive="dog", interval=interval(fold.true == fold.pred)
    )
    rows = rows_digest(features, split)
    folder = reports / "toy" / f"{result.name}.00000000"
    return save_run(folder, result, features, split, rows=rows, seed=0, settings={})


@pytest.fixture
def runs(tmp_path):
    """Accurate and overconfident; calibrated; and one that knows nothing."""
    rng = np.random.default_rng(0)
    sign = np.where(np.arange(N) % 2, 1, -1)
    logit = 0.7 * sign + rng.normal(size=N)
    PROBA["sure"] = 1 / (1 + np.exp(-9 * logit))
    PROBA["calibrated"] = 1 / (1 + np.exp(-1.4 * (logit - 0.1)))
    PROBA["guess"] = np.full(N, 0.45)
    return [run_of(tmp_path, head, proba) for head, proba in PROBA.items()]


def told(head):
    """True and predicted labels of the test rows, and probabilities as they were."""
    dog = PROBA[head][-TESTED:]
    table = np.stack([1 - dog, dog], axis=1)
    labels = np.array(CLASSES)
    return labels[np.arange(N)[-TESTED:] % 2], labels[table.argmax(axis=1)], table


def test_a_loss_is_best_where_it_is_lowest(runs):
    assert [run.head for run in sort_runs(runs)] == ["sure", "calibrated", "guess"]
    done = sort_runs(runs, "log_loss")
    assert [run.head for run in done] == ["calibrated", "guess", "sure"]
    assert done.best.score < 0.65 < done.runs[1].score
    assert [run.tie for run in done] == [False, False, False]
    assert done.best.p is None
    assert (done.runs[1].p, done.runs[2].p) < (0.05, 0.05)
    text = verdict(done.runs)
    assert text.startswith("By log loss, big+small.concat.calibrated is best, by more than chance")
    assert "nats" in text


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_what_scikit_learn_says_inside_its_interval(runs, metric):
    wanted = {
        "log_loss": lambda t, _, p: log_loss(t, p, labels=CLASSES),
        "brier": lambda t, _, p: 2 * brier_score_loss(t == "dog", p[:, 1]),
        "auc": lambda t, _, p: roc_auc_score(t == "dog", p[:, 1]),
        "f1": lambda t, s, _: f1_score(t, s, average="macro"),
        "f1_positive": lambda t, s, _: f1_score(t, s, pos_label="dog", zero_division=0),
    }
    for run in sort_runs(runs, metric):
        low, high = run.score_interval
        assert low < run.score < high or run.score in (0.0, 0.5)
        assert low < high
        if metric in wanted:
            value = wanted[metric](*told(run.head))
            assert run.score == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_the_test_is_of_the_metric_that_ranks(runs, metric):
    done = sort_runs(runs, metric)
    table = [row_scores(metric, *told(run.head), CLASSES, "dog") for run in done]
    wanted = compare_all(np.stack(table, axis=1))
    assert [run.p for run in done.runs[1:]] == pytest.approx(wanted.p[:2].tolist(), abs=1e-3)
    family = done.best.family
    assert family.detectable == pytest.approx(wanted.detectable(0), rel=0.05)
    assert family.winner.score == pytest.approx(done.best.score, abs=1e-5)
    assert family.winner.low < family.winner.expected < family.winner.high


def test_csv_markdown_and_page_name_the_metric(runs, tmp_path):
    done = write_comparison(tmp_path, metric="log_loss")
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["head"] for row in rows] == ["calibrated", "guess", "sure"]
    assert list(rows[0])[6:13] == ["log_loss", "low", "high", "p", "tie", "accuracy",
                                   "balanced_accuracy"]  # fmt: skip
    assert sorted(rows[0]) == sorted(COLUMNS)
    assert float(rows[0]["low"]) < float(rows[0]["log_loss"]) < float(rows[0]["high"])
    assert "By log loss" in (tmp_path / "comparison.md").read_text()
    page = (tmp_path / "comparison.html").read_text()
    assert "best log loss" in page
    assert "Log loss against cost" in page
    assert done.best.head == "calibrated"
    write_comparison(tmp_path)
    with (tmp_path / "comparison.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_brier_has_a_column_of_its_own(runs):
    columns = sort_runs(runs, "brier").columns
    assert columns[6] == "brier"
    assert set(columns) == {"brier", *COLUMNS}


def test_what_to_use_is_worse_by_little_in_the_metric_s_own_direction(tmp_path):
    rng = np.random.default_rng(1)
    logit = np.where(np.arange(N) % 2, 1.2, -1.2) + rng.normal(size=N)
    noise = [np.random.default_rng(seed).normal(scale=0.4, size=N) for seed in (2, 3)]
    made = [
        run_of(tmp_path, "mlp", 1 / (1 + np.exp(-2 * logit + 0.5 * noise[0])), 100.0),
        run_of(tmp_path, "lda", 1 / (1 + np.exp(-2 * logit + noise[1])), 2.0),
        run_of(tmp_path, "knn", 1 / (1 + np.exp(-1.2 * logit)), 1.0),
    ]
    done = sort_runs(made, "log_loss")
    assert [run.head for run in done] == ["mlp", "lda", "knn"]
    worse = {run.head: run.score - done.best.score for run in done}
    assert worse["lda"] < 0.01 < worse["knn"]
    assert "To use: big+small.concat.lda, 0.00" in verdict(done.runs)
    assert "nats above the best" in verdict(done.runs)


def test_runs_without_probabilities_come_last_and_are_said(tmp_path):
    done = compare(
        make_features(200), head=["ridge", "nearest_mean", "logreg"], singles=False, folds=3,
        reports=tmp_path, metric="auc",
    )  # fmt: skip
    assert done.runs[-1].head == "ridge"
    assert math.isnan(done.runs[-1].score)
    assert done.runs[-1].p is None
    assert "1 run without probabilities not ranked." in verdict(done.runs)
    assert done.rows()[-1]["auc"] == ""
    assert "nan" not in done.markdown()
    page = (tmp_path / "comparison.html").read_text().lower()
    assert ">nan" not in page
    assert '"nan' not in page
    assert (done.best.folder / "model").is_dir()  # the best by this metric is kept


def test_no_candidate_with_probabilities_is_refused_before_any_fit(tmp_path):
    with pytest.raises(RecipeError, match="no candidate gives probabilities"):
        compare(make_features(), head="ridge", reports=tmp_path, metric="log_loss")
    with pytest.raises(UnknownName, match="unknown metric 'acuracy'"):
        compare(make_features(), head="ridge", reports=tmp_path, metric="acuracy")
    assert not any(tmp_path.iterdir())


def test_only_runs_without_probabilities(tmp_path):
    runs = compare(make_features(), head="ridge", reports=tmp_path, singles=False).runs
    text = verdict(sort_runs(runs, "auc").runs)
    assert text == "big+small.concat.ridge is the only run on these rows."
    both = compare(make_features(), head="ridge", reports=tmp_path).runs
    assert verdict(sort_runs(both, "auc").runs) == "No run here has an AUC to be ranked by."


def test_a_fold_without_a_class_is_left_out_of_the_auc(tmp_path):
    features = make_features(40)
    split = [replace(fold, name=f"fold{i}") for i, fold in enumerate(own_split(40, 20))]
    first = replace(split[0], test=np.arange(0, 20))
    cats = replace(first, name="fold1", train=np.arange(0, 20), test=np.arange(20, 40, 2))
    split = [replace(first, train=np.arange(20, 40)), cats]
    made = []
    for head, right in (("mlp", np.ones(40, bool)), ("svm", np.arange(40) % 5 > 0)):
        result = make_result(features, split, right, head)
        folder = tmp_path / "toy" / f"{result.name}.00000000"
        rows = rows_digest(features, split)
        made.append(save_run(folder, result, features, split, rows=rows, seed=0, settings={}))
    done = sort_runs(made, "auc")
    assert done.best.score == 1.0
    assert done.runs[1].p is not None
    assert done.best.family.size == 2


def test_what_a_backbone_adds_is_of_the_metric(tmp_path):
    done = compare(make_features(300, signal=2.5), head="logreg", folds=3, ablate=True,
                   reports=tmp_path, metric="log_loss")  # fmt: skip
    found = ablation(done.runs)
    assert [one.backbone for one in found] == ["big", "small"]
    assert found[0].adds < -0.05  # of a loss, less is better
    for one in found:
        assert one.low < one.adds < one.high
        assert one.with_it == pytest.approx(
            next(run.score for run in done if len(run.backbones) == 2)
        )


def test_the_metric_is_in_no_digest_and_fits_nothing_again(tmp_path):
    options = {"head": ["logreg", "knn"], "singles": False, "folds": 3, "reports": tmp_path}
    plain = compare(make_features(), **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    other = compare(make_features(), metric="brier", **options)
    assert {run.folder for run in plain} == {run.folder for run in other}
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert (
        json.loads((plain.best.folder / "metrics.json").read_text())["mean"]
        .keys()
        .isdisjoint({"brier"})
    )
