import numpy as np
import pytest
from sklearn import metrics as reference

from featcache.fitting.metrics import calibration_error, interval, scores


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


def test_interval_of_single_rows():
    correct = np.arange(1000) < 800
    low, high = interval(correct)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.005)
    assert high == pytest.approx(0.8 + half, abs=0.005)
    assert interval(correct) == (low, high)
    assert interval(correct, seed=1, draws=50) != interval(correct, seed=0, draws=50)


def test_interval_of_groups_against_drawing_one_by_one():
    rng = np.random.default_rng(0)
    groups = rng.integers(40, size=400)
    correct = rng.random(400) < rng.random(40)[groups]
    low, high = interval(correct, groups, draws=4000)
    draws = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(40, size=40)])
        draws.append(correct[rows].mean())
    np.testing.assert_allclose((low, high), np.percentile(draws, (2.5, 97.5)), atol=0.012)
    alone = interval(correct, draws=4000)
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_interval_of_empty_groups():
    correct = np.arange(100) < 80
    assert interval(correct, np.full(100, "")) == interval(correct)
    assert interval(correct, np.full(100, "one")) == (0.8, 0.8)
