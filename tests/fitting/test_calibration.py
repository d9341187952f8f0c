"""Temperatures: found again where they are known, and what becomes of them."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from featcache.fitting.calibration import temperature, tempered
from featcache.fitting.fusions.late import VoteFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.splits import hold_out

from .conftest import make_features


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    drawn = softmax(logits, axis=1).cumsum(axis=1) > rng.random((20_000, 1))
    codes = drawn.argmax(axis=1)
    assert temperature(logits * true, codes) == pytest.approx(true, rel=0.05)
    np.testing.assert_allclose(
        tempered(softmax(logits * true, axis=1), true), softmax(logits, axis=1), atol=1e-9
    )


def test_rows_that_are_all_right_are_no_proof():
    codes = np.arange(20) % 2
    found = softmax(np.eye(2)[codes] / temperature(np.eye(2)[codes], codes), axis=1)
    assert found.max() == pytest.approx(1 - 1 / 22, abs=1e-3)


def test_weights_of_the_classes():
    logits, codes = np.zeros((300, 2)), (np.arange(300) % 3 == 0).astype(int)
    logits[:, 0] = 1
    alone = temperature(logits, codes)
    assert softmax(logits[0] / alone)[1] == pytest.approx(1 / 3, abs=0.01)
    even = softmax(logits[0] / temperature(logits, codes, np.array([1.0, 2.0])))
    assert even[1] == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize("fusion", [None, "gated"])
def test_the_mlp_is_divided_by_what_its_validation_rows_say(fusion):
    features = make_features(n=300, signal=0.3)
    X, y = features.X, features.y
    settings = {"hidden": 16, "epochs": 10, "lr": 0.01, "fusion": fusion, "blocks": (6, 4)}
    raw = MLPHead(**settings, calibrate=False).fit(X, y)
    head = MLPHead(**settings).fit(X, y)
    seed = np.random.RandomState(0).randint(2**31 - 1)
    codes = np.unique(y, return_inverse=True)[1]
    _, held = hold_out(codes, None, 0.1, seed)
    logits = raw.as_module()(torch.from_numpy(X)).detach().numpy()
    assert head.temperature_ == pytest.approx(temperature(logits[held], codes[held]), rel=1e-4)
    expected = softmax(logits / head.temperature_, axis=1)
    np.testing.assert_allclose(head.predict_proba(X), expected, atol=1e-5)
    rows, proba = head.held_out_
    np.testing.assert_array_equal(rows, held)
    np.testing.assert_allclose(proba, expected[held], atol=1e-5)
    assert MLPHead(hidden=4, epochs=1, validation=0).fit(X, y).temperature_ == 1


@pytest.mark.parametrize("name", ["logreg", "lda", "svm", "mlp"])
def test_votes_of_sure_heads_are_made_surer(name):
    features = make_features(n=600, signal=0.4)
    X, y, test = features.X[:400], features.y[:400], features.X[400:]
    head = HEADS[name](0)
    if name == "mlp":
        head.set_params(hidden=16, epochs=20, lr=0.01)
    vote = VoteFusion(head, (6, 4)).fit(X, y)
    raw = VoteFusion(head, (6, 4), calibrate=False).fit(X, y)
    assert raw.temperature_ == 1
    said = [one.steps[-1][1].held_out_ for one in vote.members_]
    np.testing.assert_array_equal(said[0][0], said[1][0])
    logs = np.log((said[0][1] + said[1][1]) / 2)
    codes = np.searchsorted(vote.classes_, y[said[0][0]])
    assert vote.temperature_ == pytest.approx(temperature(logs, codes), rel=1e-6)
    expected = tempered(raw.predict_proba(test), vote.temperature_)
    np.testing.assert_allclose(vote.predict_proba(test), expected, atol=1e-6)
    np.testing.assert_array_equal(vote.predict(test), raw.predict(test))


def test_votes_without_held_out_rows_are_the_mean(features):
    assert VoteFusion(HEADS["knn"](0), (6, 4)).fit(features.X, features.y).temperature_ == 1
