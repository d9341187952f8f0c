"""Fits on rows that stay on disk come to what fits in memory come to."""

from __future__ import annotations

import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest
from packages import XGBOOST
from scipy.special import logsumexp
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from stored import blobs, reseal, store

from featcache.errors import CacheRefused, RecipeError
from featcache.fitting import leakage, out_of_core, training
from featcache.fitting.checks import check_features
from featcache.fitting.evaluate import evaluate
from featcache.fitting.fold import fit_clone, predict_all
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.leakage import can_search_near, find_leaks
from featcache.fitting.out_of_core import Stream
from featcache.fitting.persist import load_pipeline, save_pipeline
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.splits import make_folds
from featcache.store.features import take


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Blocks of 50 rows, buffers of 100 and runs of 4, so that little data has many of each."""
    monkeypatch.setattr(out_of_core, "_BLOCK", 50 * 40)
    monkeypatch.setattr(training, "_BUFFER", 100 * 40)
    monkeypatch.setattr(training, "_RUN", 4 * 40)
    monkeypatch.setattr(training, "_CHUNK", 64)
    monkeypatch.setattr(out_of_core, "SAMPLE", 90 * 40)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same features in memory and on disk: class after class, each file in its own order."""
    X, y = blobs(400, signal=0.6)
    split = ["test" if i % 4 == 0 else "train" for i in range(400)]
    cache, images = store(tmp_path_factory.mktemp("c"), X, y, (6, 4), "float16", split=split)
    entries = cache.choose("toy")
    return cache.features(images, entries), cache.features(images, entries, lazy=True)


def fits(both, fusion="concat", head="logreg", **settings):
    """A classifier fitted in memory, and on disk, on all rows."""
    loaded, lazy = both
    wanted = make_classifier(fusion, head, blocks=loaded.blocks, settings=settings)
    return fit_clone(wanted, loaded.X, loaded.y), fit_clone(wanted, lazy.X, lazy.y)


def agreement(both, **asked):
    loaded, _ = both
    one, other = fits(both, **asked)
    return float((one.predict(loaded.X) == other.predict(loaded.X)).mean())


def accuracies(both, head, **settings):
    """On the test rows, in memory and on disk."""
    wanted = make_classifier("concat", head, settings=settings)
    return [evaluate(wanted, part).metrics["accuracy"] for part in both]


def test_standardised_columns_are_the_same(both):
    one, other = (fitted.steps[0][1].scaler_ for fitted in fits(both))
    np.testing.assert_allclose(other.mean_, one.mean_, rtol=1e-10)
    np.testing.assert_allclose(other.scale_, one.scale_, rtol=1e-10)
    assert other.n_samples_seen_ == one.n_samples_seen_ == 400


@pytest.mark.parametrize("pca", [3, 0.9])
def test_principal_components_are_the_same(both, pca):
    loaded, lazy = both
    one = ConcatFusion(loaded.blocks, pca=pca).fit(loaded.X)
    other = ConcatFusion(loaded.blocks, pca=pca).fit_stream(Stream(lazy.X))
    assert other.widths_ == one.widths_
    for mine, theirs in zip(other.pca_, one.pca_, strict=True):
        for name in ("components_", "explained_variance_", "explained_variance_ratio_",
                     "singular_values_", "noise_variance_"):  # fmt: skip
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), atol=2e-3)
        assert mine.n_samples_ == theirs.n_samples_
    transformed = other.transform(loaded.X)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed, one.transform(loaded.X), atol=1e-3)


def _penalised_loss(fitted, X, y):
    """What scikit-learn's LogisticRegression minimises, in float64, on standardised columns."""
    X = StandardScaler().fit_transform(X.astype(np.float64))
    codes = np.searchsorted(fitted.classes_, y)
    weight = compute_sample_weight(fitted.class_weight, y)
    z = X @ fitted.coef_.T.astype(np.float64) + fitted.intercept_  # (n, outputs)
    z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
    losses = logsumexp(z, axis=1) - z[np.arange(len(y)), codes]  # (n,)
    size = float(np.square(fitted.coef_.astype(np.float64)).sum())
    return np.average(losses, weights=weight) + size / (2 * fitted.C_ * weight.sum())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"head.class_weight": "balanced", "head.C": 0.3}, {"head.fit_intercept": False}],
)
def test_logreg_finds_the_same_optimum(tmp_path, classes, settings):
    X, y = blobs(400, classes=classes, signal=0.6)
    y = ["class0" if i % 7 == 0 else label for i, label in enumerate(y)]
    cache, images = store(tmp_path, X, y, (6, 4))
    lazy = cache.features(images, cache.choose("toy"), lazy=True)
    wanted = make_classifier(settings={"head.tol": 1e-6, **settings}, head="logreg")
    exact, other = (
        fit_clone(wanted, rows, lazy.y).steps[1][1] for rows in (X.astype(np.float64), lazy.X)
    )
    # Logits are float32 there, so no step that gains less than their rounding can be seen: by that
    # much the loss may be above its optimum, whatever the processor.
    best, found = (_penalised_loss(fitted, X, lazy.y) for fitted in (exact, other))
    assert -1e-11 < found - best < np.finfo(np.float32).eps
    np.testing.assert_allclose(other.coef_, exact.coef_, rtol=0, atol=1e-3)
    single = fit_clone(wanted, X, lazy.y).steps[1][1]
    assert (other.coef_.dtype, other.coef_.shape) == (single.coef_.dtype, single.coef_.shape)
    assert other.classes_.tolist() == exact.classes_.tolist()


def test_logreg_does_not_depend_on_its_first_guess(both, monkeypatch):
    wanted, lazy = make_classifier(head="logreg", settings={"head.tol": 1e-6}), both[1]
    guessed = fit_clone(wanted, lazy.X, lazy.y).steps[1][1]
    monkeypatch.setattr(out_of_core, "SAMPLE", 40)  # too few rows for every class
    plain = fit_clone(wanted, lazy.X, lazy.y).steps[1][1]
    one, other = (_penalised_loss(fitted, both[0].X, lazy.y) for fitted in (guessed, plain))
    assert one == pytest.approx(other, abs=float(np.finfo(np.float32).eps))


def test_the_mlp_is_as_good(both):
    one, other = accuracies(both, "mlp", **{"head.hidden": 32, "head.epochs": 15, "head.lr": 3e-3})
    assert 0.6 < one < 0.95
    assert abs(one - other) < 0.04  # of 100 rows


def test_the_mlp_holds_back_the_same_rows_and_stops_early(both):
    settings = {"head.epochs": 40, "head.lr": 0.01, "head.patience": 3, "head.hidden": 16}
    one, other = (fitted.steps[1][1].history_ for fitted in fits(both, head="mlp", **settings))
    assert 3 < len(other["val_loss"]) < 40
    assert len(other["val_accuracy"]) == len(other["train_loss"]) == len(other["val_loss"])
    assert min(other["val_loss"]) == pytest.approx(min(one["val_loss"]), abs=0.05)
    again = fits(both, head="mlp", **settings)[1].steps[1][1].history_
    assert again == other


def test_shuffling_reaches_every_row_once_and_mixes_the_classes(both):
    import torch

    _, lazy = both
    source = training.OnDisk(Stream(lazy.X))
    rows = torch.arange(0, 400, 2)
    generator = torch.Generator().manual_seed(0)
    orders = []
    for _ in range(2):
        taken = list(source.shuffled(rows, 25, generator))
        assert [len(part) for _, part in taken] == [25] * 8
        for X, part in taken:
            np.testing.assert_array_equal(X.numpy(), lazy.X[part.numpy()])
        orders.append(torch.cat([part for _, part in taken]))
        assert sorted(orders[-1].tolist()) == rows.tolist()
        # On disk one class may follow another: a batch still has all of them.
        assert all(len(set(lazy.y[part.numpy()].tolist())) == 3 for _, part in taken)
    assert not torch.equal(*orders)
    held = list(source.in_order(rows))
    assert sorted(torch.cat([part for _, part in held]).tolist()) == rows.tolist()


@pytest.fixture
def boosting(monkeypatch):
    """The module, in which XGBoost is handed 60 rows at a time."""
    pytest.importorskip("xgboost")
    from featcache.fitting.heads import xgboost

    monkeypatch.setattr(xgboost, "_PAGE", 60 * 40)
    return xgboost


@pytest.mark.parametrize("bins", [2**28, 0])
def test_xgboost_is_as_good_with_bins_in_memory_or_on_disk(both, boosting, monkeypatch, bins):
    monkeypatch.setattr(boosting, "_BINS", bins)
    settings = {"head.colsample_bytree": 1.0, "head.n_estimators": 30, "head.n_jobs": 1}
    one, other = accuracies(both, "xgboost", **settings)
    assert 0.6 < one < 0.95
    # Bins of other rows turn some 10 % of the verdicts on 100 rows: two standard errors of that.
    assert abs(one - other) < 0.065
    head = fits(both, head="xgboost", **settings)[1].steps[1][1]
    assert 3 < len(head.history_["val_loss"]) <= 30
    assert head.booster_.n_classes_ == 3


@pytest.mark.usefixtures("boosting")
def test_xgboost_with_the_same_quantiles_is_the_same(both):
    # Without draws and with a bin for every value there is nothing left to differ in.
    settings = {
        "head.colsample_bytree": 1.0, "head.subsample": 1.0, "head.n_estimators": 10,
        "head.max_bin": 1024, "head.validation": 0.0, "head.n_jobs": 1,
    }  # fmt: skip
    one, other = fits(both, head="xgboost", **settings)
    X = both[0].X
    np.testing.assert_allclose(other.predict_proba(X), one.predict_proba(X), atol=0.02)


def test_nearest_mean_and_dummy_are_the_same(both):
    one, other = (fitted.steps[1][1] for fitted in fits(both, head="nearest_mean"))
    np.testing.assert_allclose(other.means_, one.means_, atol=1e-5)
    assert other.variance_ == pytest.approx(one.variance_, rel=1e-5)
    assert agreement(both, head="dummy") == 1


@pytest.mark.parametrize(
    "fusion", sorted(set(FUSIONS) - {"attention", "gated", "hadamard", "concat"})
)
def test_fusions_without_training_are_the_same(both, fusion):
    assert agreement(both, fusion=fusion, **{"bilinear.width": 64}) > 0.99


@pytest.mark.parametrize("fusion", ["attention", "gated", "hadamard"])
@pytest.mark.parametrize("head", ["mlp", "logreg"])
def test_learned_fusions_are_as_good(both, fusion, head):
    part = "head" if head == "mlp" else "fusion"
    settings = {"fusion.dim": 16, f"{part}.epochs": 12, f"{part}.lr": 3e-3}
    assert agreement(both, fusion=fusion, head=head, **settings) > 0.9


def test_a_fold_s_predictions_come_in_the_order_of_its_rows(both):
    loaded, lazy = both
    fitted = fits(both)[0]
    rows = np.random.default_rng(0).permutation(400)[:170]
    classes = np.unique(loaded.y)
    for one, other in zip(
        predict_all(fitted, take(loaded.X, rows), classes),
        predict_all(fitted, take(lazy.X, rows), classes),
        strict=True,
    ):
        if one.dtype.kind == "f":
            np.testing.assert_allclose(other, one, atol=1e-6)
        else:
            assert other.tolist() == one.tolist()


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluate_by_folds_and_jobs(both, jobs):
    loaded, lazy = both
    wanted = make_classifier("attention", "mlp", settings={"head.epochs": 2, "fusion.dim": 8})
    result = evaluate(wanted, lazy, folds=2, n_jobs=jobs)
    assert sum(len(fold.ids) for fold in result.folds) == 400
    assert result.folds[0].attention is not None
    assert [fold.ids.tolist() for fold in result.folds] == [
        loaded.ids[fold.test].tolist() for fold in make_folds(loaded, 2)
    ]


def test_groups_are_not_divided(both, monkeypatch):
    _, lazy = both
    seen = []
    rows_of = training.OnDisk.in_order

    def noted(self, rows):
        seen.append(rows.numpy())
        return rows_of(self, rows)

    monkeypatch.setattr(training.OnDisk, "in_order", noted)
    groups = np.arange(400) // 8
    wanted = make_classifier("concat", "mlp", settings={"head.epochs": 1})
    fit_clone(wanted, lazy.X, lazy.y, groups)
    held = set(groups[seen[0]].tolist())
    assert held
    assert not held & set(groups[np.setdiff1d(np.arange(400), seen[0])].tolist())


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"head": "svm"}, "the head svm needs all rows"),
        ({"head": "knn"}, "the head knn"),
        ({"head": "forest"}, "the head forest"),
        ({"head": "ridge"}, "the head ridge"),
        ({"fusion": "vote", "head": "svm"}, "the head svm"),
        ({"head": "mlp", "select": "anova:3"}, "--select"),
        ({"head": "mlp", "tune": 2}, "--tune"),
        ({"head": "logreg", "settings": {"head.solver": "saga"}}, "lbfgs"),
        ({"head": "logreg", "settings": {"head.l1_ratio": 0.5}}, "L2"),
    ],
)
def test_what_needs_all_rows_is_refused_before_any_is_read(both, monkeypatch, asked, named):
    _, lazy = both
    monkeypatch.setattr(out_of_core.Stream, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(RecipeError, match=named) as caught:
        fit_clone(make_classifier(**asked), lazy.X, lazy.y)
    assert "--memory" in caught.value.remedy


def test_the_gate_sees_what_it_sees_in_memory(tmp_path):
    X, y = blobs(100)
    X[5, 2] = np.inf
    X[60:62] = X[60]
    cache, images = store(tmp_path, np.where(np.isinf(X), 7, X), y, (6, 4))
    with h5py.File(cache.choose("toy")[0].path, "r+") as file:
        file["features"][7, 1] = np.nan
    reseal(cache.choose("toy")[0].path)
    said = []
    for lazy in (False, True):
        features = cache.features(images, cache.choose("toy"), lazy=lazy)
        with pytest.raises(CacheRefused) as caught:
            check_features(features)
        said.append(caught.value.problem)
    assert said[0] == said[1]
    assert "NaN" in said[0]


def test_nan_that_the_gate_let_through_is_an_error_without_a_traceback(tmp_path):
    X, y = blobs(100)
    cache, images = store(tmp_path, X, y, (6, 4))
    with h5py.File(cache.choose("toy")[0].path, "r+") as file:
        file["features"][7, 1] = np.nan
    reseal(cache.choose("toy")[0].path)
    lazy = cache.features(images, cache.choose("toy"), lazy=True)
    for head in ("mlp", "logreg"):
        with pytest.raises(RecipeError, match="contains NaN"):
            fit_clone(make_classifier("concat", head), lazy.X, lazy.y)


def test_leaks_are_those_found_in_memory(both, monkeypatch, caplog):
    loaded, lazy = both
    folds = make_folds(loaded)
    assert find_leaks(lazy, folds) == find_leaks(loaded, folds)
    assert can_search_near(lazy)
    monkeypatch.setattr(leakage, "NEAR_ON_DISK", 399)
    with caplog.at_level(logging.WARNING, "featcache"):
        assert can_search_near(loaded)
        assert not can_search_near(lazy)
    assert "near duplicates are not looked for" in caplog.text


@pytest.mark.parametrize("head", ["mlp", "logreg", XGBOOST, "nearest_mean"])
def test_what_was_fitted_can_be_kept(both, tmp_path, head):
    loaded, lazy = both
    wanted = make_classifier("concat", head, blocks=loaded.blocks)
    if head == "mlp":
        wanted.set_params(head__epochs=1)
    fitted = fit_clone(wanted, lazy.X, lazy.y)
    parts = save_pipeline(tmp_path, fitted)
    again = load_pipeline(tmp_path, parts)
    np.testing.assert_allclose(
        again.predict_proba(loaded.X), fitted.predict_proba(loaded.X), atol=1e-6
    )


def test_an_error_in_the_reading_thread_arrives(both):
    _, lazy = both
    block = lazy.X._blocks[0]
    gone = replace(block, files=(replace(block.files[0], offset=10**9),))
    lazy = replace(lazy, X=type(lazy.X)([gone, *lazy.X._blocks[1:]], lazy.X._index))
    with pytest.raises(CacheRefused, match="cut short"):
        fit_clone(make_classifier("concat", "mlp"), lazy.X, lazy.y)
