"""The loop that trains every network here, on rows in memory or on disk."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from featcache.errors import FeatcacheError, RecipeError, unknown
from featcache.fitting.out_of_core import Stream, ahead
from featcache.fitting.splits import hold_out

History = dict[str, list[float]]
Rows = NDArray[np.intp]

_CHUNK = 4096

DECAYS = ("cosine", "plateau")

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "rmsprop": torch.optim.RMSprop,
}

# How much "plateau" leaves of the rate each time.
_FACTOR = 0.3


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, on the cross entropy.

    Attributes
    ----------
    epochs : int
        Most passes over the training rows.
    batch_size : int
        Rows in one step.
    lr : float
        Learning rate.
    weight_decay : float
        Weight decay; for all but "adamw" that of torch, added to the gradient.
    label_smoothing : float
        Share of the target spread over all classes, in [0, 1).
    patience : int
        Epochs without a lower validation loss before training stops.
    validation : float
        Share of the rows, stratified, kept for early stopping, in [0, 1); 0 trains on all rows
        for all epochs.
    optimiser : {"adamw", "adam", "sgd", "rmsprop"}
        torch's, with its defaults; "sgd" has momentum 0.9.

    Raises
    ------
    RecipeError
        For a value out of range.
    UnknownName
        For another optimiser.
    """

    epochs: int = 50
    batch_size: int = 64
    lr: float = 3e-4
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    patience: int = 5
    validation: float = 0.1
    optimiser: str = "adamw"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise RecipeError(f"{name} is {value!r}", "Give a whole number above 0.")
        limits = {"lr": math.inf, "weight_decay": math.inf, "label_smoothing": 1, "validation": 1}
        for name, most in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise RecipeError(f"{name} is {value!r}", "Give a number.")
            if not 0 <= value < most or (name == "lr" and value == 0):
                raise RecipeError(f"{name} is {value!r}", f"Give a number from 0 to below {most}.")
        if str(self.optimiser) not in OPTIMISERS:
            raise unknown("optimiser", str(self.optimiser), OPTIMISERS)

    @classmethod
    def of(cls, estimator: Any) -> Schedule:
        """The schedule among an estimator's parameters; defaults for those that it has not."""
        names = [field.name for field in fields(cls) if hasattr(estimator, field.name)]
        return cls(**{name: getattr(estimator, name) for name in names})


def train(
    network: nn.Module,
    X: Tensor | Batches,
    y: Tensor,
    schedule: Schedule,
    seed: int,
    weights: Tensor | None = None,
    decay: str | None = None,
    groups: NDArray[Any] | None = None,
) -> History:
    """Train a classifier in place; it is in evaluation mode afterwards.

    With a validation share (see `splits.hold_out`) training stops early and the weights
    of the epoch with the lowest validation loss are put back; without one, all epochs are run and
    the last weights stay. Shuffling follows from `seed`; dropout from torch's global state, which
    callers fix with `networks.seeded`.

    Parameters
    ----------
    network : Module
        From (n, d) to logits (n, classes).
    X : float32 tensor of shape (n, d), or Batches of one
    y : int64 tensor of shape (n,)
        Class indices.
    schedule : Schedule
    seed : int
    weights : float32 tensor of shape (classes,), default None
        How much a row of each class counts in both losses; None means 1.
    decay : {None, "cosine", "plateau"}, default None
        How the rate falls from the schedule's `lr`. "cosine": along half a cosine, to 0 after the
        last of all epochs; "plateau": to 0.3 of itself whenever the validation loss (the training
        loss without a validation share) was not lower for more than half of `patience` epochs.
    groups : array of shape (n,), default None
        Rows that share a value are validated on together, or not at all.

    Returns
    -------
    dict of lists, one value an epoch
        `train_loss` (smoothed, in training mode), `val_loss` (not smoothed) and `val_accuracy`;
        the last two are empty without a validation share.

    Raises
    ------
    FeatcacheError
        If the loss is no longer finite.
    UnknownName
        For another `decay`.
    """
    kept, held = (
        torch.from_numpy(rows) for rows in hold_out(y.numpy(), groups, schedule.validation, seed)
    )
    source = InMemory(X) if isinstance(X, Tensor) else X
    optimizer = OPTIMISERS[schedule.optimiser](
        network.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    lower = _lowering(optimizer, schedule, decay)
    generator = torch.Generator().manual_seed(seed)
    history: History = {"train_loss": [], "val_loss": [], "val_accuracy": []}
    best, best_epoch, best_weights = math.inf, 0, None
    for epoch in range(schedule.epochs):
        batches = source.shuffled(kept, schedule.batch_size, generator)
        loss = _epoch(network, batches, y, optimizer, schedule, weights)
        _check_finite(loss, epoch, schedule)
        history["train_loss"].append(loss)
        if not len(held):
            lower(loss)
            continue
        val_loss, accuracy = _validate(network, source.in_order(held), y, weights)
        lower(val_loss)
        history["val_loss"].append(val_loss)
        history["val_accuracy"].append(accuracy)
        if val_loss < best:
            best, best_epoch = val_loss, epoch
            best_weights = copy.deepcopy(network.state_dict())
        elif epoch - best_epoch >= schedule.patience:
            break
    if best_weights is not None:
        network.load_state_dict(best_weights)
    network.eval()
    return history


def _lowering(
    optimizer: torch.optim.Optimizer, schedule: Schedule, decay: str | None
) -> Callable[[float], None]:
    """What to call with the loss after each epoch, to set the rate of the next."""
    if decay is None:
        return lambda _: None
    if decay == "cosine":
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=schedule.epochs)
        return lambda _: cosine.step()
    if decay == "plateau":
        plateau = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=_FACTOR, patience=schedule.patience // 2, threshold=0
        )
        return lambda loss: plateau.step(loss)
    raise unknown("schedule", str(decay), DECAYS)


def _check_finite(loss: float, epoch: int, schedule: Schedule) -> None:
    if not math.isfinite(loss):
        raise FeatcacheError(
            f"the training loss became {loss} in epoch {epoch + 1} (lr {schedule.lr:g})",
            "Set a lower lr, and check that the features are standardised.",
        )


def _epoch(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    weights: Tensor | None,
) -> float:
    """One pass over the batches, each (b, d) with its rows (b,); the mean loss."""
    network.train()
    total, count = torch.zeros(()), 0
    for x, rows in batches:
        logits = network(x)  # (b, classes)
        loss = functional.cross_entropy(
            logits, y.index_select(0, rows), weights, label_smoothing=schedule.label_smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.detach() * len(rows)
        count += len(rows)
    return total.item() / count


def _validate(
    network: nn.Module,
    pieces: Iterable[tuple[Tensor, Tensor]],
    y: Tensor,
    weights: Tensor | None,
) -> tuple[float, float]:
    """Mean cross entropy and accuracy on pieces of rows."""
    logits, rows = _logits(network, pieces)  # (n, classes), (n,)
    truth = y[rows]  # (n,)
    loss = functional.cross_entropy(logits, truth, weights).item()
    return loss, (logits.argmax(1) == truth).float().mean().item()


def _logits(network: nn.Module, pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) of pieces of rows, and which rows they are (n,)."""
    network.eval()
    with torch.inference_mode():
        found = [(network(x), rows) for x, rows in pieces]
    return torch.cat([one for one, _ in found]), torch.cat([rows for _, rows in found])


def held_out_logits(
    network: nn.Module, X: Tensor | Batches, rows: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Logits (m, classes) of these rows of X, and the rows (m,) in the order of the logits."""
    source = InMemory(X) if isinstance(X, Tensor) else X
    logits, order = _logits(network, source.in_order(torch.from_numpy(rows)))
    return logits.numpy(), order.numpy()


def infer(output: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """The output for X of a network in evaluation mode, a piece at a time."""
    with torch.inference_mode():
        return torch.cat([output(part) for part in torch.split(X, _CHUNK)])  # (n, out)


def as_tensor(X: NDArray[Any]) -> Tensor:
    """A float32 tensor on X's memory where X allows it; a copy where X is read-only.

    Workers of a parallel run get X as a read-only memory map, which torch doesn't take.
    """
    return torch.from_numpy(np.require(X, np.float32, ["C", "W"]))  # (n, d)


_RUN = 2**16  # bytes of neighbouring rows that are read together
_BUFFER = 2**26  # bytes of float32 rows that are shuffled together


class Batches(Protocol):
    """The rows of a matrix X (n, d) in pieces, each with its positions."""

    def shuffled(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows in a random order, in batches: (b, d) and (b,)."""

    def in_order(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows in any fixed order, in larger pieces."""


class InMemory:
    """Of a float32 tensor (n, d)."""

    def __init__(self, X: Tensor) -> None:
        self._X = X

    def shuffled(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every order is as likely."""
        order = rows[torch.randperm(len(rows), generator=generator)]
        for part in torch.split(order, size):
            yield self._X.index_select(0, part), part

    def in_order(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are given."""
        for part in torch.split(rows, _CHUNK):
            yield self._X.index_select(0, part), part


class OnDisk:
    """Of a stream: runs of neighbouring rows in random order, shuffled again in a buffer.

    The buffer takes a thousand runs or more, so that a batch has rows from all over the file even
    where the file goes class by class. A matrix no larger than it is shuffled as in memory.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        d = max(stream.X.shape[1], stream.width)
        self._run = max(1, _RUN // (4 * stream.X.shape[1]))
        self._buffer = max(1, _BUFFER // (4 * d))
        self._place = np.empty(len(stream), np.intp)  # (n,) of each row on the disk
        self._place[stream.order] = np.arange(len(stream))

    def shuffled(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random runs, the next buffer being read while the batches of one are used."""
        buffer = max(1, self._buffer // size) * size
        parts = [
            part[torch.randperm(len(part), generator=generator)]
            for part in torch.split(self._runs(rows, generator), buffer)
        ]
        for part, X in zip(parts, ahead(partial(self._read, part) for part in parts), strict=True):
            yield from zip(torch.split(X, size), torch.split(part, size), strict=True)

    def in_order(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are on the disk."""
        parts = torch.split(rows[self._disk_order(rows)], _CHUNK)
        read = ahead(partial(self._read, part) for part in parts)
        return zip(read, parts, strict=True)

    def _runs(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows, each run of neighbours together, the runs in random order."""
        ordered = rows[self._disk_order(rows)]  # (m,)
        runs = -(-len(ordered) // self._run)
        starts = torch.randperm(runs, generator=generator) * self._run  # (runs,)
        places = (starts[:, None] + torch.arange(self._run)).flatten()  # (runs * run,)
        return ordered[places[places < len(ordered)]]

    def _disk_order(self, rows: Tensor) -> Tensor:
        order: NDArray[np.intp] = np.argsort(self._place[rows.numpy()], kind="stable")
        return torch.from_numpy(order)

    def _read(self, rows: Tensor) -> Tensor:
        X: NDArray[Any] = self._stream.read(rows.numpy())  # (b, width)
        return torch.from_numpy(np.require(X, np.float32, ["C", "W"]))
