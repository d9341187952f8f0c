import numpy as np
import pytest
import torch
from torch.nn import functional

from featcache.errors import FeatcacheError, UnknownName
from featcache.fitting.training import Schedule, train

from .test_training import blobs, mlp


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


def test_loss_that_explodes():
    X, y = blobs()
    with pytest.raises(FeatcacheError, match=r"loss became .* in epoch"):
        train(mlp(), X * 1e30, y, Schedule(lr=1e9, epochs=50, validation=0), seed=0)
