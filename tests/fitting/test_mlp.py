"""The MLP: its optimisers are those of torch, each learns, and a wrong name is an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.networks import seeded
from featcache.fitting.training import OPTIMISERS, Schedule, train

from .conftest import make_features

RATES = {"adamw": 0.003, "adam": 0.003, "rmsprop": 0.001, "sgd": 0.02}


def _table(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    return rng.normal(size=(rows, 6)).astype(np.float32) + 2 * np.eye(3, 6)[y], y


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_learns(name: str) -> None:
    X, y = _table()
    head = MLPHead(hidden=16, epochs=80, lr=RATES[name], optimiser=name, dropout=0.0).fit(X, y)
    assert head.score(X, y) > 0.8


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9)),
    ],
)
def test_the_steps_are_those_of_torch(name: str, theirs) -> None:  # type: ignore[no-untyped-def]
    """Two epochs of one whole batch each, against a loop written out."""
    X, y = (torch.from_numpy(part) for part in _table(30))
    head = MLPHead(hidden=4, dropout=0.0)
    with seeded(0):
        ours = head.joint_network(6, 3)
    with seeded(0):
        plain = head.joint_network(6, 3)
    schedule = Schedule(
        epochs=2, batch_size=30, lr=0.01, weight_decay=0.1, validation=0.0, optimiser=name
    )
    train(ours, X.float(), y, schedule, seed=0)
    optimiser = theirs(plain.parameters())
    plain.train()
    for _ in range(2):
        optimiser.zero_grad()
        functional.cross_entropy(plain(X.float()), y).backward()
        optimiser.step()
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamm", "", None, 3, ["adam"]])
def test_another_name_is_an_error(name: object) -> None:
    with pytest.raises(UnknownName, match="unknown optimiser"):
        MLPHead(optimiser=name).fit(*_table(30))  # type: ignore[arg-type]


# Hidden layers, fusions that are trained along, schedules, class weights.


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
