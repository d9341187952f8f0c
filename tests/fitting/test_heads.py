import numpy as np
import pytest
import torch
from packages import EACH_HEAD, XGBOOST, hide, needs_xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.heads.svm import SVMHead
from featcache.fitting.pipeline import make_classifier

from .conftest import make_features


def small(name, seed=0):
    head = HEADS[name](seed)
    quick = {
        "mlp": {"hidden": 16, "epochs": 15, "lr": 0.01},
        "xgboost": {"n_estimators": 10, "colsample_bytree": 1.0, "n_jobs": 1},
        "forest": {"n_estimators": 10, "n_jobs": 1},
    }
    return head.set_params(**quick.get(name, {}))


def least(name, classes):
    return 0 if name == "dummy" else 0.9 if classes < 4 else 0.7


@pytest.mark.parametrize("classes", [("a", "b"), ("zebra", "ape", "yak"), tuple("abcdefghijkl")])
@pytest.mark.parametrize("name", EACH_HEAD)
def test_string_labels(name, classes):
    features = make_features(n=40 * len(classes), classes=classes)
    half = 20 * len(classes)
    head = small(name).fit(features.X[:half], features.y[:half])
    pred = head.predict(features.X[half:])
    assert (pred == features.y[half:]).mean() > least(name, len(classes))
    assert head.classes_.tolist() == sorted(classes)
    if name == "ridge":
        assert not hasattr(head, "predict_proba")
        return
    proba = head.predict_proba(features.X[half:])
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(head.classes_[proba.argmax(axis=1)], pred)


@pytest.mark.parametrize("name", ["mlp", XGBOOST, "svm", "forest"])
def test_seeds(name):
    features = make_features(signal=0.3)

    def proba(seed):
        return small(name, seed).fit(features.X, features.y).predict_proba(features.X)

    before = torch.get_rng_state()
    np.testing.assert_array_equal(proba(0), proba(0))
    assert not np.array_equal(proba(0), proba(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", EACH_HEAD)
def test_a_class_of_one_row(name):
    features = make_features(n=60)
    keep = np.flatnonzero((features.y != "owl") | (np.arange(60) == 2))
    head = small(name).fit(features.X[keep], features.y[keep])
    if name != "ridge":
        proba = head.predict_proba(features.X)
        assert proba.shape == (60, 3)
        assert np.isfinite(proba).all()
    assert (head.predict(features.X[keep]) == features.y[keep]).mean() > least(name, 3)


@pytest.mark.parametrize("name", EACH_HEAD)
def test_constant_columns_and_tiny_data(name):
    features = make_features(n=6)
    X = features.X.copy()
    X[:, 1] = 7
    assert set(small(name).fit(X, features.y).predict(X)) <= {"cat", "dog", "owl"}


@pytest.mark.parametrize("hidden", [8, (8,), [8]])
def test_hidden_as_number_or_list(features, hidden):
    head = MLPHead(hidden=hidden, epochs=1).fit(features.X, features.y)
    assert head.network_.layers[0].out_features == 8


@pytest.mark.parametrize("hidden", ["wide", [0], [8, 2.5], True])
def test_hidden_of_another_kind(features, hidden):
    with pytest.raises(RecipeError, match="hidden"):
        MLPHead(hidden=hidden).fit(features.X, features.y)


def test_joint_attention(features):
    head = MLPHead(
        16, fusion="attention", blocks=features.blocks, dim=8, heads=2, epochs=30, lr=0.01
    )
    head.fit(features.X, features.y)
    assert head.score(features.X, features.y) > 0.9
    weights = head.attention_weights(features.X)
    assert weights.shape == (120, 2, 2)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-5)


def test_joint_is_trained_end_to_end(features):
    head = MLPHead(16, fusion="attention", blocks=(6, 4), dim=8, heads=2, epochs=1, validation=0)
    first = head.fit(features.X, features.y).network_[0].project[0].weight.clone()
    again = head.set_params(epochs=2).fit(features.X, features.y).network_[0].project[0].weight
    assert not torch.equal(first, again)


def test_joint_gate(features):
    head = MLPHead(16, fusion="gated", blocks=features.blocks, dim=8, epochs=30, lr=0.01)
    head.fit(features.X, features.y)
    assert head.score(features.X, features.y) > 0.9
    weights = head.gate_weights(features.X)
    assert weights.shape == (120, 2)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert weights.std() > 0
    with pytest.raises(RecipeError, match="no attention"):
        head.attention_weights(features.X)


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_schedules_of_the_mlp(features, schedule):
    head = MLPHead(16, epochs=15, lr=0.01, schedule=schedule).fit(features.X, features.y)
    assert head.score(features.X, features.y) > 0.9
    with pytest.raises(UnknownName, match="schedule 'step'"):
        MLPHead(schedule="step").fit(features.X, features.y)


@pytest.mark.parametrize("weights", ["balanced", {"common": 1, "rare": 9}])
def test_class_weights_of_the_mlp_find_the_rare_class(weights):
    features = make_features(n=600, classes=("common", "rare"), signal=0.25)
    rows = features.rows(np.flatnonzero((features.y == "common") | (np.arange(600) % 18 == 1)))
    rare = rows.y == "rare"

    def found(class_weight):
        head = MLPHead(16, epochs=15, lr=0.01, class_weight=class_weight).fit(rows.X, rows.y)
        return (head.predict(rows.X) == "rare")[rare].mean()

    assert found(weights) > found(None) + 0.1


def test_attention_weights_without_attention(features):
    head = MLPHead(8, epochs=1).fit(features.X, features.y)
    with pytest.raises(RecipeError, match="no attention"):
        head.attention_weights(features.X)
    with pytest.raises(RecipeError, match="no gate"):
        head.gate_weights(features.X)


def test_unknown_fusion_in_the_head(features):
    with pytest.raises(UnknownName, match="concat"):
        MLPHead(fusion="concat").fit(features.X, features.y)


@needs_xgboost
def test_boosting_stops_early():
    from featcache.fitting.heads.xgboost import XGBHead

    features = make_features(n=300, signal=0.2)
    head = XGBHead(n_jobs=1, patience=3).fit(features.X, features.y)
    losses = head.history_["val_loss"]
    assert len(losses) == int(np.argmin(losses)) + 1 + 3 < 100
    everything = XGBHead(n_jobs=1, validation=0, n_estimators=7).fit(features.X, features.y)
    assert everything.history_["val_loss"] == []
    assert everything.booster_.get_booster().num_boosted_rounds() == 7


@needs_xgboost
def test_boosting_share_out_of_range(features):
    from featcache.fitting.heads.xgboost import XGBHead

    with pytest.raises(RecipeError, match="validation"):
        XGBHead(validation=1.5).fit(features.X, features.y)


def test_svm_kernel_matrix_changes_nothing():
    features = make_features(signal=0.5)
    whole = SVMHead(gamma=0.1).fit(features.X, features.y).predict_proba(features.X)
    row_by_row = (
        SVMHead(gamma=0.1, gram_rows=0).fit(features.X, features.y).predict_proba(features.X)
    )
    np.testing.assert_allclose(whole, row_by_row, atol=1e-3)


def test_svm_agrees_with_a_bare_svc():
    features = make_features(n=400, signal=0.6)
    ours = SVMHead().fit(features.X[:200], features.y[:200]).predict(features.X[200:])
    bare = SVC(C=10).fit(features.X[:200], features.y[:200]).predict(features.X[200:])
    assert (ours == bare).mean() > 0.95


def test_svm_unknown_gamma(features):
    with pytest.raises(UnknownName, match="skale"):
        SVMHead(gamma="skale").fit(features.X, features.y)


def test_logreg_is_sklearns():
    assert isinstance(HEADS["logreg"](0), LogisticRegression)


def test_without_xgboost(monkeypatch):
    hide(monkeypatch, "xgboost", "featcache.fitting.heads.xgboost")
    with pytest.raises(FeatcacheError, match="xgboost") as caught:
        HEADS["xgboost"](0)
    assert "pip install" in caught.value.remedy
    HEADS["mlp"](0)
    make_classifier(head="mlp", settings={"xgboost.max_depth": 3})  # of use to another candidate


@needs_xgboost
def test_device_of_the_trees(monkeypatch, features):
    from featcache.fitting.heads import xgboost

    monkeypatch.setattr(xgboost.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(xgboost.xgboost, "build_info", lambda: {"USE_CUDA": True})
    assert xgboost._device("auto") == "cuda"
    monkeypatch.setattr(xgboost.xgboost, "build_info", lambda: {"USE_CUDA": False})
    assert xgboost._device("auto") == "cpu"
    assert xgboost._device("cuda:1") == "cuda:1"
    with pytest.raises(UnknownName, match="device 'gpu'"):
        xgboost.XGBHead(device="gpu").fit(features.X, features.y)
