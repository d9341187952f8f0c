import importlib
import sys

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC, LinearSVC
from sklearn.svm import SVC as PlainSVC
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight

from featcache.errors import DataError, RecipeError, UnknownName
from featcache.fitting.calibration import held_out_rows
from featcache.fitting.fold import predict_all
from featcache.fitting.heads import svm
from featcache.fitting.heads.svm import SVMHead
from featcache.fitting.metrics import calibration_error

from .conftest import make_features


def uneven(signal=0.25):
    """Two classes, nine rows to one."""
    features = make_features(n=600, classes=("common", "rare"), signal=signal)
    keep = np.flatnonzero((features.y == "common") | (np.arange(600) % 18 == 1))
    return features.rows(keep)


@pytest.mark.skipif(not svm.SVC.__module__.startswith("sklearnex"), reason="not installed")
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_intelex_says_what_sklearn_says(monkeypatch, weights):
    features = make_features(n=400, signal=0.5)
    X, y, test = features.X[:200], features.y[:200], features.X[200:]
    fast = SVMHead(class_weight=weights, gram_rows=0).fit(X, y).predict_proba(test)
    monkeypatch.setattr(svm, "SVC", PlainSVC)
    plain = SVMHead(class_weight=weights, gram_rows=0).fit(X, y).predict_proba(test)
    np.testing.assert_allclose(fast, plain, atol=5e-3)
    assert (fast.argmax(axis=1) == plain.argmax(axis=1)).mean() > 0.99


def test_sklearn_itself_is_not_patched():
    assert PlainSVC.__module__.startswith("sklearn.")


def test_without_intelex(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearnex.svm", None)
    monkeypatch.delitem(sys.modules, "featcache.fitting.heads.svm")
    again = importlib.import_module("featcache.fitting.heads.svm")
    assert again.SVC is PlainSVC
    monkeypatch.setattr(sys.modules["featcache.fitting.heads"], "svm", svm)


def test_groups_stay_in_one_part_of_the_calibration(monkeypatch):
    features = make_features(n=240, signal=0.5)
    groups = np.arange(240) // 6
    seen, plain = [], svm.held_out_rows
    monkeypatch.setattr(svm, "held_out_rows", lambda *args: seen.extend(plain(*args)) or seen)
    SVMHead().fit(features.X, features.y, groups)
    assert len(seen) == 3
    for train, held in seen:
        assert not set(groups[train]) & set(groups[held])
    monkeypatch.undo()
    lonely = SVMHead().fit(features.X, features.y, np.arange(240) % 3)  # a group is a class
    assert lonely.score(features.X, features.y) > 0.5


def test_one_pass_over_the_kernel(monkeypatch):
    features = make_features()
    calls, plain = [], svm.rbf_kernel
    monkeypatch.setattr(
        svm, "rbf_kernel", lambda *args, **named: calls.append(1) or plain(*args, **named)
    )
    head = SVMHead().fit(features.X, features.y)
    assert len(calls) == 0
    pred, proba = predict_all(head, features.X, np.unique(features.y))
    assert len(calls) == 1
    np.testing.assert_array_equal(pred, head.classes_[proba.argmax(axis=1)])


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_machines_are_sklearns_one_against_the_rest(classes, weights):
    features = make_features(n=240, classes=classes, signal=0.5)
    keep = np.flatnonzero((features.y != "a") | (np.arange(240) % 3 == 0))
    X, y = features.X[keep], features.y[keep]
    head = SVMHead(C=2, gamma=0.1, class_weight=weights).fit(X, y)
    values = head.machine_.decision_function(features.X)
    by_row = compute_sample_weight(weights, y)
    for output, label in enumerate(classes[-values.shape[1] :]):
        bare = SVC(C=2, gamma=0.1).fit(X, y == label, by_row)
        np.testing.assert_allclose(values[:, output], bare.decision_function(features.X), atol=5e-3)


def test_the_map_learns_from_rows_that_were_held_out():
    """By hand, with scikit-learn alone."""
    features = make_features(n=240, signal=0.5)
    X, y, test = features.X[:160], features.y[:160], features.X[160:]
    head = SVMHead(C=2, gamma=0.1, random_state=3).fit(X, y)
    seed = check_random_state(3).randint(2**31 - 1)
    codes = np.unique(y, return_inverse=True)[1]
    machine = OneVsRestClassifier(SVC(C=2, gamma=0.1))
    values = np.empty((160, 3))
    for train, held in held_out_rows(codes, None, seed):
        values[held] = machine.fit(X[train], y[train]).decision_function(X[held])
    final = LogisticRegression(max_iter=1000).fit(values, y)
    expected = final.predict_proba(machine.fit(X, y).decision_function(test))
    np.testing.assert_allclose(head.predict_proba(test), expected, atol=5e-3)
    rows, proba = head.held_out_
    assert sorted(rows.tolist()) == list(range(160))
    np.testing.assert_allclose(proba, final.predict_proba(values)[rows], atol=5e-3)


def test_linear_agrees_with_a_bare_machine():
    features = make_features(n=400, signal=0.6)
    X, y, test = features.X[:200], features.y[:200], features.X[200:]
    ours = SVMHead(kernel="linear", C=2).fit(X, y)
    bare = LinearSVC(C=2 / (10 * float(X.var()))).fit(X, y)
    assert (ours.predict(test) == bare.predict(test)).mean() > 0.9
    np.testing.assert_allclose(ours.machine_.coef_, bare.coef_)


def test_probabilities_are_those_of_the_population():
    """Not far from the truth, which is known of generated classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 8))
    codes = rng.integers(0, 6, 4000)
    X = centres[codes] + rng.normal(size=(4000, 8))
    true = softmax(X @ centres.T - np.square(centres).sum(axis=1) / 2, axis=1)
    head = SVMHead(C=0.3).fit(X[:2000], codes[:2000])
    ours = log_loss(codes[2000:], head.predict_proba(X[2000:]))
    assert ours < log_loss(codes[2000:], true[2000:]) + 0.1
    assert calibration_error(codes[2000:], head.predict_proba(X[2000:]), range(6)) < 0.05


def test_cost_that_suits_the_kernel(features):
    for kernel, cost in (("rbf", 10), ("linear", 0.03)):
        chosen, default = (SVMHead(C=C, kernel=kernel) for C in (cost, None))
        np.testing.assert_array_equal(
            chosen.fit(features.X, features.y).predict_proba(features.X),
            default.fit(features.X, features.y).predict_proba(features.X),
        )


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_gamma_scale_makes_c_independent_of_the_units(scale):
    features = make_features(signal=0.5)
    centred = features.X - features.X.mean(axis=0)
    one, other = (
        SVMHead(C=10, kernel="linear").fit(X, features.y).predict(X)
        for X in (centred, centred * np.float32(scale))
    )
    # The intercept is part of LinearSVC's penalty, hence not all are equal.
    assert (one == other).mean() > 0.95


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("weights", ["balanced", {"common": 1, "rare": 9}])
def test_class_weights_find_the_rare_class(kernel, weights):
    features = uneven()
    rare = features.y == "rare"
    plain = SVMHead(kernel=kernel).fit(features.X, features.y)
    even = SVMHead(kernel=kernel, class_weight=weights).fit(features.X, features.y)
    assert (even.predict(features.X) == "rare")[rare].mean() > (
        plain.predict(features.X) == "rare"
    )[rare].mean() + 0.1
    proba = even.predict_proba(features.X)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_seed_of_the_calibration():
    features = make_features(signal=0.3)

    def proba(seed):
        head = SVMHead(kernel="linear", random_state=seed).fit(features.X, features.y)
        return head.predict_proba(features.X)

    np.testing.assert_array_equal(proba(0), proba(0))
    assert not np.array_equal(proba(0), proba(1))


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"kernel": "poly"}, UnknownName),
        ({"kernel": "linear", "gamma": "skale"}, UnknownName),
        ({"class_weight": {"bird": 2}}, RecipeError),
    ],
)
def test_parameters_of_another_kind(features, params, error):
    with pytest.raises(error):
        SVMHead(**params).fit(features.X, features.y)


def test_one_class(features):
    with pytest.raises(DataError, match="1 class: cat"):
        SVMHead().fit(features.X[::3], features.y[::3])


# Against scikit-learn's own.


def test_svm_kernel_matrix_changes_nothing():
    features = make_features(signal=0.5, classes=("a", "b"))
    whole = SVMHead(gamma=0.1).fit(features.X, features.y).predict_proba(features.X)
    row_by_row = (
        SVMHead(gamma=0.1, gram_rows=0).fit(features.X, features.y).predict_proba(features.X)
    )
    np.testing.assert_allclose(whole, row_by_row, atol=5e-3)


def test_more_rows_than_the_kernel_matrix_may_have():
    features = make_features(n=400, signal=0.6)
    scores = [
        SVMHead(gram_rows=rows).fit(features.X[:200], features.y[:200])
        .score(features.X[200:], features.y[200:])
        for rows in (1000, 0)
    ]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_svm_unknown_gamma(features):
    with pytest.raises(UnknownName, match="skale"):
        SVMHead(gamma="skale").fit(features.X, features.y)
