"""Checkpoint: what a training needs to go on after a kill as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featcache.atomic import guard_writes, replacing, sync
from featcache.errors import FeatcacheError, WeightsError, first_line
from featcache.extraction.state_dict import read_pickled

FILE = "checkpoint.pt"
State = dict[str, Any]


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    epoch : int
        The epoch under way, from 0.
    step : int
        Steps of it that are done.
    parts : int
        Into how many parts a batch is cut.
    loss, seen : float
        Sum of the training loss over this epoch's images so far (on a GPU a tensor, so that not
        every step waits for it), and how many those are.
    seconds : float
        Wall time so far, over all starts.
    epochs : list of float
        Wall time of each finished epoch, its validation included, and of the start in the first.
    history : dict of lists
        One value for each finished epoch.
    best : list of [accuracy, loss, epoch], or empty
        Of the validation.
    network, optimiser, average, kept : state dicts
        `average` of the moving average, `kept` of the best epoch; empty where there is none.
    rng : dict of str to uint8 tensor
        torch's generators in the middle of an epoch; empty between epochs.
    done : bool
        Whether the training has ended.
    """

    epoch: int = 0
    step: int = 0
    parts: int = 1
    loss: float | Tensor = 0.0
    seen: int = 0
    seconds: float = 0.0
    epochs: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)
    network: State = field(default_factory=dict)
    optimiser: State = field(default_factory=dict)
    average: State = field(default_factory=dict)
    kept: State = field(default_factory=dict)
    rng: State = field(default_factory=dict)
    done: bool = False


def save(folder: Path, progress: Progress) -> None:
    """Write a checkpoint in place of the one before, all or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    plain = {one.name: getattr(progress, one.name) for one in fields(progress)}
    with guard_writes(path):
        with replacing(path) as temporary:
            torch.save(plain, temporary)
            sync(temporary)
        sync(folder)


def load(folder: Path) -> Progress | None:
    """The checkpoint in a folder; None where there is none.

    Raises
    ------
    FeatcacheError
        If it can't be read. Tensors and plain values are read, and nothing else.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Progress(**read_pickled(path))
    except (WeightsError, TypeError) as error:
        raise FeatcacheError(
            f"{path} is no checkpoint that can be read: {first_line(error)}",
            f"Delete {folder}, and the training begins again.",
        ) from None
