import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.fitting.networks import MLP, seeded
from featcache.fitting.splits import hold_out
from featcache.fitting.training import Schedule, as_tensor, train


def blobs(n=90, d=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(size=(classes, d))[y] * 2 + rng.normal(size=(n, d))
    return torch.tensor(X, dtype=torch.float32), torch.tensor(y)


def mlp(seed=0):
    with seeded(seed):
        return MLP(5, (8,), 3)


def test_same_as_a_bare_loop():
    X, y = blobs()
    ours, theirs = mlp(), mlp()
    history = train(ours, X, y, Schedule(epochs=3, batch_size=32, validation=0), seed=7)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-4, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(7)
    losses = []
    for _ in range(3):
        order, total = torch.randperm(90, generator=generator), 0.0
        for start in range(0, 90, 32):
            rows = order[start : start + 32]
            loss = nn.CrossEntropyLoss()(theirs(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / 90)
    assert history["train_loss"] == pytest.approx(losses, rel=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_label_smoothing_reaches_the_loss():
    X, y = blobs()
    network = mlp()
    smooth = functional.cross_entropy(network(X), y, label_smoothing=0.2).item()
    schedule = Schedule(epochs=1, batch_size=90, validation=0, label_smoothing=0.2)
    assert train(network, X, y, schedule, seed=0)["train_loss"][0] == pytest.approx(smooth)


def test_best_epoch_is_put_back():
    X, y = blobs(seed=1)
    y = y[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    network = mlp()
    history = train(network, X, y, Schedule(epochs=200, lr=0.03, patience=4), seed=0)
    losses = history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4 < 200
    held = hold_out(y.numpy(), None, 0.1, 0)[1]
    assert functional.cross_entropy(network(X[held]), y[held]).item() == pytest.approx(
        losses[best], rel=1e-5
    )
    assert not network.training


@pytest.mark.parametrize("y", [[0] * 50 + [1], [0, 1, 2] * 2, [0] * 500 + [1, 1]])
def test_share_that_cannot_hold_every_class_trains_on_all(y):
    kept, held = hold_out(np.array(y), None, 0.1, 0)
    assert len(kept) == len(y)
    assert len(held) == 0
    network = MLP(5, (), 3)
    X = torch.randn(len(y), 5)
    history = train(network, X, torch.tensor(y), Schedule(epochs=7, patience=1), seed=0)
    assert len(history["train_loss"]) == 7
    assert history["val_loss"] == history["val_accuracy"] == []


def test_loss_that_explodes():
    X, y = blobs()
    with pytest.raises(FeatcacheError, match=r"loss became .* in epoch") as caught:
        train(mlp(), X * 1e30, y, Schedule(lr=1e9, epochs=50, validation=0), seed=0)
    assert "lower lr" in caught.value.remedy


def test_seeds():
    X, y = blobs()

    def fitted(seed):
        network = copy.deepcopy(mlp())
        train(network, X, y, Schedule(epochs=2), seed)
        return network.layers[0].weight

    assert torch.equal(fitted(0), fitted(0))
    assert not torch.equal(fitted(0), fitted(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", "ten"),
        ("batch_size", 2.5),
        ("patience", True),
        ("lr", 0),
        ("lr", float("nan")),
        ("weight_decay", -1),
        ("label_smoothing", 1),
        ("validation", "a"),
    ],
)
def test_schedule_out_of_range(name, value):
    with pytest.raises(RecipeError, match=name):
        Schedule(**{name: value})


def test_read_only_arrays_are_copied():
    X = np.ones((2, 2), np.float32)
    assert np.shares_memory(as_tensor(X).numpy(), X)
    X.setflags(write=False)
    as_tensor(X)[0, 0] = 5
    assert X[0, 0] == 1


# Options of the training.


def bare_rates(rates, weights=None):
    """A loop of our own over whole batches, one rate an epoch; the losses."""
    X, y = blobs()
    network, losses = mlp(), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=1, weight_decay=1e-4)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        loss = functional.cross_entropy(network(X), y, weight=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def losses(schedule, **params):
    X, y = blobs()
    return train(mlp(), X, y, schedule, seed=0, **params)["train_loss"]


def test_cosine():
    rates = [0.01 * (1 + np.cos(np.pi * epoch / 8)) / 2 for epoch in range(8)]
    schedule = Schedule(epochs=8, batch_size=90, lr=0.01, validation=0)
    assert losses(schedule, decay="cosine") == pytest.approx(bare_rates(rates), rel=1e-4)


def test_plateau():
    """At this rate the loss jumps about; each third epoch without a lower one cuts the rate."""
    schedule = Schedule(epochs=20, batch_size=90, lr=1.0, validation=0, patience=4)
    found = losses(schedule, decay="plateau")
    rates, rate, best, bad = [], 1.0, np.inf, 0
    for loss in found:
        rates.append(rate)
        best, bad = (loss, 0) if loss < best else (best, bad + 1)
        if bad > 2:
            rate, bad = rate * 0.3, 0
    assert rates[-1] < 1
    assert found == pytest.approx(bare_rates(rates), rel=1e-3, abs=1e-4)


def test_class_weights_reach_both_losses():
    X, y = blobs()
    weights = torch.tensor([1.0, 5.0, 0.2])
    schedule = Schedule(epochs=3, batch_size=90, lr=0.01, validation=0)
    found = losses(schedule, weights=weights)
    assert found == pytest.approx(bare_rates([0.01] * 3, weights), rel=1e-4)
    held = train(mlp(), X, y, Schedule(epochs=1), 0, weights)
    plain = train(mlp(), X, y, Schedule(epochs=1), 0)
    assert held["val_loss"] != plain["val_loss"]


def test_unknown_decay():
    with pytest.raises(UnknownName, match=r"schedule 'cosin'\nDid you mean cosine"):
        losses(Schedule(), decay="cosin")


def test_loss_that_explodes_names_its_epoch():
    X, y = blobs()
    with pytest.raises(FeatcacheError, match=r"loss became .* in epoch"):
        train(mlp(), X * 1e30, y, Schedule(lr=1e9, epochs=50, validation=0), seed=0)
