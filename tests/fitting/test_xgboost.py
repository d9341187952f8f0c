import numpy as np
import pytest
from packages import hide, needs_xgboost

from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.fitting.heads import HEADS
from featcache.fitting.pipeline import make_classifier

from .conftest import make_features


@needs_xgboost
def test_boosting_stops_early():
    from featcache.fitting.heads.xgboost import XGBHead

    features = make_features(n=300, signal=0.2)
    head = XGBHead(n_jobs=1, patience=3).fit(features.X, features.y)
    losses = head.history_["val_loss"]
    assert len(losses) == int(np.argmin(losses)) + 1 + 3 < 400
    rows, proba = head.held_out_
    assert len(rows) == 30
    right = -np.log(proba[np.arange(30), np.searchsorted(head.classes_, features.y[rows])])
    assert right.mean() == pytest.approx(min(losses), rel=1e-4)
    everything = XGBHead(n_jobs=1, validation=0, n_estimators=7).fit(features.X, features.y)
    assert everything.history_["val_loss"] == []
    assert everything.booster_.get_booster().num_boosted_rounds() == 7


@needs_xgboost
def test_boosting_share_out_of_range(features):
    from featcache.fitting.heads.xgboost import XGBHead

    with pytest.raises(RecipeError, match="validation"):
        XGBHead(validation=1.5).fit(features.X, features.y)


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


@needs_xgboost
def test_a_tree_sees_64_columns():
    from featcache.fitting.heads.xgboost import XGBHead

    rng = np.random.default_rng(0)
    for width, share in ((10, 1.0), (640, 0.1)):
        X, y = rng.normal(size=(30, width)), np.arange(30) % 2
        head = XGBHead(n_jobs=1, n_estimators=2).fit(X, y)
        assert head.booster_.get_params()["colsample_bytree"] == share
    given = XGBHead(n_jobs=1, n_estimators=2, colsample_bytree=0.5).fit(X, y)
    assert given.booster_.get_params()["colsample_bytree"] == 0.5


@needs_xgboost
def test_labels_that_say_nothing_are_not_learned():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(1200, 60)), rng.integers(0, 4, 1200)
    head = HEADS["xgboost"](0).set_params(n_jobs=1).fit(X[:600], y[:600])
    assert head.score(X[600:], y[600:]) == pytest.approx(0.25, abs=0.06)
