"""Candidates fitted with several seeds: means, their spread, and what it adds to the test."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import DataError, RecipeError
from featcache.fitting.metrics import luck_of_seeds, seed_variance
from featcache.fitting.significance import compare_all
from featcache.reporting.compare import compare
from featcache.reporting.comparison import sort_runs
from featcache.reporting.predictions import pair_outcomes, read_design, read_outcomes
from featcache.reporting.refit_command import redo_command
from featcache.reporting.run_page import write_run_page
from featcache.reporting.ties import verdict

from .conftest import make_features

SMALL = {"mlp.epochs": 2, "mlp.hidden": 4}
HEADS = {"head": ["mlp", "knn"], "singles": False, "settings": SMALL}


def fits(tmp_path, **options):
    done = compare(make_features(200), reports=tmp_path, folds=4, **HEADS, **options)
    return {run.head: run for run in done}


def test_each_seed_is_a_fit_of_its_own_on_the_same_folds(tmp_path):
    runs = fits(tmp_path, seeds=3, seed=5)
    alone = [
        compare(make_features(200), reports=tmp_path / str(seed), folds=4, seed=5, singles=False,
                head="mlp", settings=SMALL | {"mlp.random_state": seed}).best
        for seed in (5, 6, 7)
    ]  # fmt: skip
    mlp = runs["mlp"]
    for name in ("accuracy", "auc", "log_loss", "f1_positive"):
        values = [run.metrics[name] for run in alone]
        assert mlp.metrics[name] == pytest.approx(np.mean(values))
        assert mlp.seed_sd[name] == pytest.approx(np.std(values, ddof=1))
    assert len({run.metrics["accuracy"] for run in alone}) > 1
    assert {run.rows for run in runs.values()} == {alone[0].rows}  # the folds are those of the seed
    low, high = mlp.interval
    assert low < mlp.metrics["accuracy"] < high
    assert (mlp.seeds, mlp.settings["seeds"]) == (3, 3)
    folds = json.loads((mlp.folder / "metrics.json").read_text())["folds"]
    assert [fold["name"] for fold in folds][3:5] == ["fold4@seed5", "fold1@seed6"]
    assert read_design(mlp.folder) == read_design(runs["knn"].folder) == (4, 150.0, 50.0)
    assert "--seeds 3" in redo_command(mlp)


def test_what_takes_no_seed_is_fitted_once_and_is_the_run_that_was_there(tmp_path):
    plain = fits(tmp_path)
    several = fits(tmp_path, seeds=2)
    assert several["knn"].folder == plain["knn"].folder
    assert several["mlp"].folder != plain["mlp"].folder
    assert (plain["mlp"].seeds, plain["knn"].seeds, several["knn"].seeds) == (1, 0, 0)
    assert several["knn"].seed_sd == {}
    assert "seeds" not in plain["mlp"].settings
    # All of them were tested on the same rows, so all are compared.
    family = sort_runs([*plain.values(), several["mlp"]]).best.family
    assert family.size == 3


@pytest.mark.parametrize("metric", ["accuracy", "auc", "log_loss"])
def test_the_test_is_of_means_over_seeds(tmp_path, metric):
    runs = fits(tmp_path, seeds=3)
    done = sort_runs(list(runs.values()), metric)
    assert done.best.p is None
    assert done.runs[1].p is not None
    found = read_outcomes(runs["mlp"].folder / "predictions.csv", done.best.by)
    assert (found.seeds, len(found.score)) == (3, 200)
    assert found.mean == pytest.approx(runs["mlp"].metrics[metric], abs=1e-4)
    paired, _ = pair_outcomes([run.folder for run in done], done.best.by)
    assert paired.scores.shape == (200, 2)
    assert [extra > 0 for extra in paired.extra.tolist()].count(True) <= 1
    assert (
        "between which the best varies by"
        in verdict(sort_runs([runs["mlp"]], metric).runs + sort_runs([runs["knn"]], metric).runs)
        or done.best.head == "knn"
    )


def test_luck_is_what_rows_do_not_show():
    rng = np.random.default_rng(0)
    by_row, shifted = [], []
    for _ in range(300):
        by_row.append(luck_of_seeds(rng.random((4, 500)) < 0.8))
        rate = np.clip(0.8 + 0.03 * rng.normal(size=(4, 1)), 0, 1)
        shifted.append(luck_of_seeds(rng.random((4, 500)) < rate))
    assert np.mean(by_row) == pytest.approx(0, abs=3e-5)
    assert np.mean(shifted) == pytest.approx(0.03**2, rel=0.15)
    assert luck_of_seeds(np.ones((1, 9))) == 0
    assert seed_variance(0.5, 1, 0) == 0
    assert seed_variance(-0.5, 3, 2) == 0
    assert seed_variance(0.6, 3, 1000) == pytest.approx(0.2, rel=0.01)
    assert seed_variance(0.6, 3, 2) > 0.9


def test_an_added_variance_by_hand():
    rng = np.random.default_rng(1)
    scores = rng.random((400, 2)) < (0.85, 0.80)
    apart = scores[:, 0] * 1.0 - scores[:, 1]
    plain = compare_all(scores)
    added = 0.25 * apart.var(ddof=1) / 400  # of each of the two: half as much again
    both = compare_all(scores, extra=[added, added])
    inflated = compare_all(scores, inflation=1.5)
    assert both.p == pytest.approx(inflated.p)
    assert both.p[0] > plain.p[0]
    assert both.error[0] > plain.error[0]
    sure = compare_all(np.stack([np.ones(50), np.zeros(50)], axis=1), extra=[1.0, 1.0])
    assert sure.p[0] > 0.3  # seeds that vary so much show nothing


def test_one_seed_on_one_split_is_said(tmp_path):
    features = make_features(200)
    split = np.where(np.arange(200) // 2 % 2, "test", "train")
    features = replace(features, split=split)
    said = verdict(compare(features, reports=tmp_path, **HEADS).runs)
    assert said.endswith("compares trained classifiers, not recipes: see --seeds.")
    done = compare(features, reports=tmp_path, seeds=2, **HEADS)
    assert "not recipes" not in verdict(done.runs)
    mlp = next(run for run in done if run.head == "mlp")
    assert (mlp.folder / "model").is_dir()
    page = write_run_page(mlp.folder, among=done.runs).read_text()
    assert "sd over 2 seeds" in page


def test_predictions_that_lack_a_seed_s_tests(tmp_path):
    mlp = fits(tmp_path, seeds=2)["mlp"]
    path = mlp.folder / "predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(DataError, match="lacks tests of some seeds"):
        read_outcomes(path)


@pytest.mark.parametrize("seeds", [0, -1, 2**32])
def test_how_many_seeds_there_may_be(tmp_path, seeds):
    with pytest.raises(RecipeError, match="seeds is"):
        compare(make_features(), reports=tmp_path, seeds=seeds, **HEADS)
