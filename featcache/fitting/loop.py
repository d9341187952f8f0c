"""The loop that trains every network here: class weights and a falling rate where asked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from featcache.errors import FeatcacheError, unknown
from featcache.fitting.training import History, Schedule, infer, validation_rows

DECAYS = ("cosine", "plateau")

# How much "plateau" leaves of the rate each time.
_FACTOR = 0.3


def fit_network(
    network: nn.Module,
    X: Tensor,
    y: Tensor,
    schedule: Schedule,
    seed: int,
    weights: Tensor | None = None,
    decay: str | None = None,
) -> History:
    """Train a classifier in place; it is in evaluation mode afterwards.

    With a validation share (see `training.validation_rows`) training stops early and the weights
    of the epoch with the lowest validation loss are put back; without one, all epochs are run and
    the last weights stay. Shuffling follows from `seed`; dropout from torch's global state, which
    callers fix with `networks.seeded`.

    Parameters
    ----------
    network : Module
        From (n, d) to logits (n, classes).
    X : float32 tensor of shape (n, d)
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

    Returns
    -------
    dict of lists, one value an epoch
        `train_loss` (smoothed, in training mode), `val_loss` (not smoothed) and `val_accuracy`;
        the last two are empty without a validation share.

    Raises
    ------
    FeatcacheError
        Where the loss is no longer finite.
    UnknownName
        For another `decay`.
    """
    kept, held = (
        torch.from_numpy(rows) for rows in validation_rows(y.numpy(), schedule.validation, seed)
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True
    )
    lower = _lowering(optimizer, schedule, decay)
    generator = torch.Generator().manual_seed(seed)
    history: History = {"train_loss": [], "val_loss": [], "val_accuracy": []}
    best, best_epoch, best_weights = math.inf, 0, None
    for epoch in range(schedule.epochs):
        order = kept[torch.randperm(len(kept), generator=generator)]
        loss = _epoch(network, X, y, order, optimizer, schedule, weights)
        _check_finite(loss, epoch, schedule)
        history["train_loss"].append(loss)
        if not len(held):
            lower(loss)
            continue
        val_loss, accuracy = _validate(network, X, y, held, weights)
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
    X: Tensor,
    y: Tensor,
    order: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    weights: Tensor | None,
) -> float:
    """One pass over the rows in `order`; the mean loss."""
    network.train()
    total = torch.zeros(())
    for rows in torch.split(order, schedule.batch_size):
        logits = network(X.index_select(0, rows))  # (b, classes)
        loss = functional.cross_entropy(
            logits, y.index_select(0, rows), weights, label_smoothing=schedule.label_smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.detach() * len(rows)
    return total.item() / len(order)


def _validate(
    network: nn.Module, X: Tensor, y: Tensor, rows: Tensor, weights: Tensor | None
) -> tuple[float, float]:
    """Mean cross entropy and accuracy on `rows`."""
    network.eval()
    logits = infer(network, X, rows)  # (n, classes)
    truth = y[rows]
    loss = functional.cross_entropy(logits, truth, weights).item()
    return loss, (logits.argmax(1) == truth).float().mean().item()
