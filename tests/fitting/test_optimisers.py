"""The MLP's optimisers: each is torch's, each learns, and a wrong name is an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from featcache.errors import UnknownName
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.networks import seeded
from featcache.fitting.training import OPTIMISERS, Schedule, train

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
