from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from featcache.errors import CacheRefused, DataError
from featcache.fitting.evaluate import evaluate
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.metrics import interval
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.splits import Fold, make_folds

from .conftest import make_features
from .pairs import PAIRS

QUICK = {
    "mlp.hidden": 16,
    "mlp.epochs": 10,
    "mlp.lr": 0.01,
    "xgboost.n_estimators": 10,
    "xgboost.colsample_bytree": 1.0,
    "xgboost.n_jobs": 1,
    "attention.dim": 8,
    "attention.heads": 2,
    "gated.dim": 8,
    "hadamard.dim": 8,
    "bilinear.width": 64,
    "stack.cv": 2,
    "forest.n_estimators": 10,
    "forest.n_jobs": 1,
}

# Four principal components a block, merged, keep only part of what six and four columns say.
LOSSY = ("sum", "mean", "max")


def quick(fusion, head, seed=0):
    return make_classifier(fusion, head, seed=seed, settings=QUICK)


def test_equals_cross_validate():
    features = make_features(signal=0.5)
    folds = make_folds(features, folds=4)
    result = evaluate(quick("concat", "logreg"), features, split=folds)
    expected = cross_validate(
        quick("concat", "logreg"),
        features.X,
        features.y,
        cv=[(fold.train, fold.test) for fold in folds],
        scoring=("accuracy", "f1_macro", "neg_log_loss", "roc_auc_ovr"),
    )
    pairs = {
        "accuracy": expected["test_accuracy"],
        "f1": expected["test_f1_macro"],
        "log_loss": -expected["test_neg_log_loss"],
        "auc": expected["test_roc_auc_ovr"],
    }
    for name, values in pairs.items():
        assert [fold.metrics[name] for fold in result.folds] == pytest.approx(values.tolist())
        assert result.metrics[name] == pytest.approx(values.mean())
        assert result.sd[name] == pytest.approx(values.std(ddof=1))
    assert result.metrics["accuracy"] < 1


def test_what_a_result_holds(features):
    result = evaluate(quick("attention", "mlp"), features, folds=3, keep=True)
    assert result.name == "net0+net1.attention.mlp"
    assert (result.data, result.keys) == ("toy", ("key0", "key1"))
    assert result.classes == ["cat", "dog", "owl"]
    assert [fold.name for fold in result.folds] == ["fold1", "fold2", "fold3"]
    assert sorted(id_ for fold in result.folds for id_ in fold.ids) == features.ids.tolist()
    labels = dict(zip(features.ids.tolist(), features.y.tolist(), strict=True))
    for fold in result.folds:
        assert [labels[id_] for id_ in fold.ids] == fold.true.tolist()
        assert fold.proba.shape == (40, 3)
        assert fold.train_size == 80
        assert fold.history["train_loss"]
        rows = np.isin(features.ids, fold.ids)
        np.testing.assert_array_equal(fold.classifier.predict(features.X[rows]), fold.pred)
    assert result.fit_seconds == sum(fold.fit_seconds for fold in result.folds) > 0
    assert result.predict_seconds > 0
    assert result.interval[0] <= result.metrics["accuracy"] <= result.interval[1]


def test_interval_takes_linked_rows_together():
    groups = [f"g{i // 6}" for i in range(120)]
    features = make_features(signal=0.4, groups=groups)
    result = evaluate(quick("concat", "logreg"), features, folds=3)
    tested = np.concatenate([fold.ids for fold in result.folds])
    right = np.concatenate([fold.true == fold.pred for fold in result.folds])
    where = dict(zip(features.ids.tolist(), groups, strict=True))
    by_group = interval(right, np.array([where[id_] for id_ in tested.tolist()]), inflation=1.5)
    assert result.interval == pytest.approx(by_group, abs=0.01)


@pytest.mark.parametrize(("fusion", "head"), PAIRS)
def test_signal_is_found_and_permuted_labels_are_at_chance(fusion, head):
    features = make_features(n=180)
    least = 0 if head == "dummy" else 0.6 if fusion in LOSSY else 0.9
    assert evaluate(quick(fusion, head), features, folds=2).metrics["accuracy"] > least
    shuffled = replace(features, y=np.random.default_rng(5).permutation(features.y))
    accuracy = evaluate(quick(fusion, head), shuffled, folds=2).metrics["accuracy"]
    # Three classes, 180 rows: chance is 1/3 with a standard error of 0.035.
    assert 0.2 < accuracy < 0.46


@pytest.mark.parametrize("fusion", FUSIONS)
def test_test_rows_teach_nothing(fusion, features):
    (fold, *_) = make_folds(features)
    other = features.X.copy()
    other[fold.test] = other[fold.test] * 50 + 9
    kept = [
        evaluate(quick(fusion, "logreg"), given, split=[fold], keep=True).folds[0].classifier
        for given in (features, replace(features, X=other))
    ]
    one, two = (classifier.predict_proba(features.X[fold.train]) for classifier in kept)
    np.testing.assert_array_equal(one, two)


def test_seed_of_the_classifier(features):
    def proba(seed):
        return evaluate(quick("concat", "mlp", seed), features, folds=2).folds[0].proba

    np.testing.assert_array_equal(proba(0), proba(0))
    assert not np.array_equal(proba(0), proba(1))


def test_the_classifier_is_not_fitted_in_place(features):
    classifier = quick("concat", "logreg")
    evaluate(classifier, features, folds=2)
    assert not hasattr(classifier["head"], "coef_")
    assert classifier["fusion"].blocks is None


def test_parallel_folds_are_the_same(features):
    one = evaluate(quick("concat", "logreg"), features, folds=2)
    two = evaluate(quick("concat", "logreg"), features, folds=2, n_jobs=2)
    for fold, other in zip(one.folds, two.folds, strict=True):
        np.testing.assert_allclose(fold.proba, other.proba, rtol=1e-5)


def test_without_probabilities(features):
    result = evaluate(LinearSVC(), features, folds=2)
    assert all(fold.proba is None and fold.history is None for fold in result.folds)
    assert "auc" not in result.metrics
    assert (result.fusion, result.head) == ("none", "LinearSVC")


def test_label_only_in_test(features):
    owls = features.y == "owl"
    train = np.flatnonzero(~owls)[:60]
    test = np.setdiff1d(np.arange(120), train)
    fold = Fold(train, test, "test")
    result = evaluate(LogisticRegression(), features, split=[fold])
    (done,) = result.folds
    assert done.proba.shape == (60, 3)
    assert (done.proba[:, 2] == 0).all()
    assert (done.pred[done.true == "owl"] != "owl").all()
    assert result.metrics["recall"] <= 2 / 3
    assert np.isfinite(result.metrics["log_loss"])
    assert np.isfinite(result.metrics["auc"])


def test_label_only_in_training(features):
    test = np.flatnonzero(features.y != "owl")[:20]
    fold = Fold(np.setdiff1d(np.arange(120), test), test, "test")
    result = evaluate(KNeighborsClassifier(), features, split=[fold])
    assert np.isnan(result.metrics["auc"])
    assert np.isnan(result.sd["accuracy"])


def test_broken_features_are_refused(features):
    X = features.X.copy()
    X[3, :6] = 0
    broken = replace(features, X=X)
    with pytest.raises(CacheRefused, match="all zero"):
        evaluate(quick("concat", "logreg"), broken, folds=2)
    evaluate(quick("concat", "logreg"), broken, folds=2, gate="warn")


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (Fold(np.arange(9), np.arange(0), "a"), "a has no test rows"),
        (Fold(np.arange(0, 9, 3), np.arange(9, 20), "b"), "b has 3 training rows of 1 class"),
        (Fold(np.arange(9), np.arange(8, 20), "c"), "1 row of c both in"),
    ],
)
def test_folds_that_cannot_be_scored(features, fold, message):
    with pytest.raises(DataError, match=message):
        evaluate(quick("concat", "logreg"), features, split=[fold])


def test_two_samples():
    with pytest.raises(DataError, match="2 samples can't fill 5 folds"):
        evaluate(quick("concat", "mlp"), make_features(n=2))


def test_a_sure_miss_costs_the_same_whatever_a_head_counts_in(features):
    class Sure(DummyClassifier):
        def predict_proba(self, X):
            return np.tile(np.array([1e-12, 1e-12, 1 - 2e-12], self.dtype), (len(X), 1))

    said = {}
    for dtype in (np.float32, np.float64):
        Sure.dtype = dtype
        said[dtype] = evaluate(Sure(), features, folds=2).metrics["log_loss"]
    assert said[np.float32] == pytest.approx(said[np.float64], rel=1e-6)
    assert said[np.float64] == pytest.approx(-np.log(1e-12) * 2 / 3, rel=1e-6)
