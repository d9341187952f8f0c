import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from featcache.fitting.metrics import (
    calibration_error,
    fold_weights,
    interval,
    metric_intervals,
    refit_inflation,
    row_scores,
    scores,
)


def predictions(k, n=200, seed=0):
    rng = np.random.default_rng(seed)
    classes = np.array(["a", "b", "c", "d"][:k])
    true = classes[rng.integers(k, size=n)]
    proba = rng.dirichlet(np.ones(k), size=n)
    return classes, true, classes[proba.argmax(axis=1)], proba


def test_two_classes_against_sklearn():
    classes, true, pred, proba = predictions(2)
    found = scores(true, pred, proba, classes.tolist())
    expected = {
        "accuracy": reference.accuracy_score(true, pred),
        "balanced_accuracy": reference.balanced_accuracy_score(true, pred),
        "precision": reference.precision_score(true, pred, average="macro"),
        "recall": reference.recall_score(true, pred, average="macro"),
        "f1": reference.f1_score(true, pred, average="macro"),
        "precision_positive": reference.precision_score(true, pred, pos_label="b"),
        "recall_positive": reference.recall_score(true, pred, pos_label="b"),
        "f1_positive": reference.f1_score(true, pred, pos_label="b"),
        "auc": reference.roc_auc_score(true == "b", proba[:, 1]),
        "log_loss": reference.log_loss(true, proba),
    }
    assert found.pop("ece") == calibration_error(true, proba, classes)
    assert found == pytest.approx(expected)


def test_many_classes_against_sklearn():
    classes, true, pred, proba = predictions(4)
    found = scores(true, pred, proba, classes.tolist())
    assert found["f1"] == pytest.approx(reference.f1_score(true, pred, average="macro"))
    assert found["auc"] == pytest.approx(reference.roc_auc_score(true, proba, multi_class="ovr"))
    assert "f1_positive" not in found


def test_class_missing_in_test():
    found = scores(
        np.array(["a", "a", "b"]),
        np.array(["a", "c", "b"]),
        np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.9, 0.0]]),
        ["a", "b", "c"],
    )
    assert np.isnan(found["auc"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert found["log_loss"] == pytest.approx(-np.log([0.8, 0.2, 0.9]).mean())


def test_without_probabilities():
    found = scores(np.array(["a", "b"]), np.array(["a", "a"]), None, ["a", "b"])
    assert {"auc", "log_loss", "ece"}.isdisjoint(found)
    assert found["precision_positive"] == found["f1_positive"] == 0


def test_calibration_error_by_hand():
    proba = np.array([[0.9, 0.1], [0.92, 0.08], [0.3, 0.7], [0.31, 0.69]])
    true = np.array(["a", "b", "b", "a"])
    # 0.9 and 0.92 fall in the 14th of 15 bins, 0.7 and 0.69 in the 11th.
    expected = (abs(1.82 - 1) + abs(1.39 - 1)) / 4
    assert calibration_error(true, proba, ["a", "b"]) == pytest.approx(expected)
    sure = np.array([[1.0, 0.0]])
    assert calibration_error(np.array(["a"]), sure, ["a", "b"]) == 0


def test_interval_of_single_rows_is_wilsons():
    # Wilson's, solved for the two p whose distance from 0.8 is t standard errors of theirs.
    t, n = stats.t.ppf(0.975, 99), 99
    low, high = sorted(np.roots([1 + t**2 / n, -1.6 - t**2 / n, 0.64]))
    assert interval(np.arange(100) < 80) == pytest.approx((low, high))
    assert interval(np.arange(100) < 80, np.full(100, "")) == pytest.approx((low, high))
    score = stats.binomtest(800, 1000).proportion_ci(method="wilson")
    assert interval(np.arange(1000) < 800) == pytest.approx((score.low, score.high), abs=1e-4)


def test_interval_of_groups_against_drawing_one_by_one():
    rng = np.random.default_rng(0)
    groups = rng.integers(40, size=400)
    correct = rng.random(400) < rng.random(40)[groups]
    draws = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(40, size=40)])
        draws.append(correct[rows].mean())
    low, high = interval(correct, groups)
    np.testing.assert_allclose((low, high), np.percentile(draws, (2.5, 97.5)), atol=0.02)
    alone = interval(correct)
    assert high - low > 1.5 * (alone[1] - alone[0])


@pytest.mark.parametrize("groups", [None, np.arange(60) // 6, np.full(60, "one")])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_interval_is_never_of_zero_width(right, groups):
    low, high = interval(np.full(60, right), groups)
    assert 0 <= low <= right <= high <= 1
    assert high - low > 0.03
    if groups is not None:
        assert high - low > 0.25  # ten groups, or one, say less than sixty rows


def test_interval_is_about_the_mean_over_folds():
    right, folds = np.r_[np.ones(10), np.zeros(90)], np.repeat(["a", "b"], (10, 90))
    weights = fold_weights(folds)
    assert weights @ right == pytest.approx(0.5)
    low, high = interval(right, weights=weights)
    assert low < 0.5 < high
    wider = interval(right, weights=weights, inflation=2)
    assert wider[0] < low < high < wider[1]
    assert refit_inflation(5, 80, 20) == 1.25
    assert refit_inflation(1, 80, 20) == 1


METRICS = ("accuracy", "balanced_accuracy", "f1", "auc", "log_loss")


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_row_scores_have_the_metrics_mean_and_the_bootstraps_spread(k, metric):
    classes, true, _, proba = predictions(k, n=400)
    proba = 0.5 * proba + 0.5 * (true[:, None] == classes) * proba.max(axis=1, keepdims=True)
    proba /= proba.sum(axis=1, keepdims=True)
    pred = classes[proba.argmax(axis=1)]
    rows = row_scores(metric, true, pred, proba, classes.tolist())
    assert rows.mean() == pytest.approx(scores(true, pred, proba, classes.tolist())[metric])
    rng, draws = np.random.default_rng(1), []
    for _ in range(300):
        i = rng.integers(400, size=400)
        draws.append(scores(true[i], pred[i], proba[i], classes.tolist())[metric])
    assert rows.std() / 20 == pytest.approx(np.std(draws), rel=0.15)


def test_row_scores_of_brier_and_of_what_is_not_defined():
    classes, true, pred, proba = predictions(2)
    rows = row_scores("brier", true, pred, proba, classes.tolist())
    assert rows.mean() == pytest.approx(2 * reference.brier_score_loss(true == "b", proba[:, 1]))
    assert np.isnan(row_scores("auc", true, pred, None, classes.tolist())).all()
    one = np.full(len(true), "a")
    assert np.isnan(row_scores("auc", one, pred, proba, classes.tolist())).all()


def test_intervals_of_metrics_hold_their_values():
    classes, true, pred, proba = predictions(3, n=150)
    folds = np.repeat(["x", "y", "z"], 50)
    found = metric_intervals(true, pred, proba, classes.tolist(), folds=folds)
    assert set(found) == {"balanced_accuracy", "f1", "auc", "log_loss", "brier"}
    for name, (low, high) in found.items():
        if name == "brier":
            continue
        parts = [scores(true[r], pred[r], proba[r], classes.tolist())[name]
                 for r in (folds == f for f in "xyz")]  # fmt: skip
        assert 0 <= low < np.mean(parts) < high <= (np.inf if name == "log_loss" else 1)
        assert high - low < (0.5 if name == "log_loss" else 0.3)
    groups = metric_intervals(true, pred, proba, classes.tolist(), folds=folds,
                              groups=np.arange(150) // 15)  # fmt: skip
    assert set(groups) == set(found)


@pytest.mark.parametrize("proba", [True, False])
def test_intervals_of_ten_classes_with_three_rows_all_right(proba):
    classes = [f"c{i}" for i in range(10)]
    true = np.repeat(classes, 3)
    table = np.eye(10)[np.repeat(np.arange(10), 3)] if proba else None
    # Of each fold four classes are missing: no AUC in any.
    folds = np.repeat(["a", "b"], 15)
    found = metric_intervals(true, true, table, classes, folds=folds)
    losses = {name: found.pop(name) for name in ("log_loss", "brier") if proba}
    assert all(low == 0 and 0.1 < high < 0.3 for low, high in losses.values())
    assert set(found) == {"balanced_accuracy", "f1"}
    assert all(0.8 < low < 1 and high == 1 for low, high in found.values())
    # Each group is one class.
    grouped = metric_intervals(true, true, table, classes, folds=np.zeros(30), groups=true)
    assert set(grouped) == set(found) | ({"auc", *losses} if proba else set())
    for name, (low, high) in grouped.items():
        assert (low == 0 and high > 0.1) if name in losses else (0.5 < low < 0.8 and high == 1)
