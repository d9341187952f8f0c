"""Trainer: the epochs of one fold, on one device or several, with checkpoints."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from featcache.atomic import guard_writes, replacing, sync
from featcache.errors import FeatcacheError, WeightsError, first_line
from featcache.extraction.state_dict import read_pickled
from featcache.finetuning.augment import draw
from featcache.finetuning.data import Pixels
from featcache.finetuning.hardware import Meter, optimiser_kernels
from featcache.finetuning.network import FusedNetwork, groups
from featcache.finetuning.options import Options
from featcache.finetuning.steps import Stepper, infer
from featcache.fitting.networks import seeded

log = logging.getLogger("featcache")

Rows = NDArray[np.intp]
State = dict[str, Any]

FILE = "checkpoint.pt"
_SAY_EVERY = 30.0  # seconds between lines within an epoch
_SAVE_EVERY = 30.0  # seconds between checkpoints at the ends of epochs: on a GPU these are short
_LOOK_EVERY = 20  # steps between looks at the loss on a GPU, which wait for it
_EPOCH_SEED = 1_000_003


class Trainer:
    """Trains a network on some rows, and picks the best epoch on others.

    Parameters
    ----------
    network : FusedNetwork
    pixels : Pixels
    codes : int64 tensor of shape (n,)
        Class of each image.
    train, validation : int arrays
        Rows; no validation rows means that the last epoch counts.
    classes : int
    options : Options
    accelerator : accelerate.Accelerator
    seed : int
    folder : Path or None
        Where checkpoints go.
    minutes : float, default 10
        Between checkpoints within an epoch.
    label : str, default ""
        What progress lines begin with.
    """

    def __init__(
        self,
        network: FusedNetwork,
        pixels: Pixels,
        codes: Tensor,
        train: Rows,
        validation: Rows,
        classes: int,
        options: Options,
        accelerator: Any,
        seed: int,
        folder: Path | None = None,
        minutes: float = 10.0,
        label: str = "",
    ) -> None:
        self.network = network.to(accelerator.device)
        self.pixels, self.codes, self.classes = pixels, codes.to(accelerator.device), classes
        self.train_rows, self.validation_rows = train, validation
        self.options, self.accelerator, self.seed = options, accelerator, seed
        self.progress = Progress()
        self._folder, self._minutes, self._label = folder, minutes, label
        rate = options.lr if options.backbone_lr is None else options.backbone_lr
        self.optimiser = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                list(groups(network, options.lr, rate, options.layer_decay)),
                weight_decay=options.weight_decay,
                **optimiser_kernels(accelerator),
            )
        )
        self.average = (
            AveragedModel(
                network,
                multi_avg_fn=get_ema_multi_avg_fn(options.ema),  # type: ignore[no-untyped-call]
            )
            if options.ema
            else None
        )
        self._stepper = Stepper(
            self.network, self.optimiser, pixels, classes, options, accelerator, self.average
        )
        self._meter, self._before, self._saved = Meter(accelerator.device), 0.0, time.monotonic()

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        found = None if self._folder is None else load_checkpoint(self._folder)
        if found is None:
            return False
        self.progress, self._before = found, found.seconds
        if found.done:
            return True
        self._stepper.parts = found.parts
        self.network.load_state_dict(found.network)
        for group in found.optimiser["param_groups"]:  # it may come from another device
            group.update(optimiser_kernels(self.accelerator))
        self.optimiser.load_state_dict(found.optimiser)
        if self.average is not None:
            self.average.load_state_dict(found.average)
        log.info("%sgoing on from epoch %d, step %d", self._label, found.epoch + 1, found.step)
        return True

    def run(self) -> Progress:
        """Train until the end; the network then has the weights of the best epoch."""
        wrapped, progress, options = False, self.progress, self.options
        while not progress.done and progress.epoch < options.epochs:
            frozen = progress.epoch < options.freeze_epochs
            if not wrapped or frozen != self.network.frozen:
                self.network.freeze(frozen)
                self._stepper.wrap()
                wrapped = True
            start, before = time.perf_counter(), progress.seen
            self._epoch()
            speed = (progress.seen - before) / (time.perf_counter() - start)
            self._close_epoch(speed)
            if options.patience and progress.best:
                progress.done = progress.epoch - progress.best[2] > options.patience
            waited = time.monotonic() - self._saved
            if progress.done or waited > min(60 * self._minutes, _SAVE_EVERY):
                self._save()
        if not progress.done:
            progress.done = True
            self._save()
        self._stepper.release()
        self.network.load_state_dict(progress.kept)
        self.network.eval()
        return progress

    def warm_up(self, vectors: Tensor) -> None:
        """Run the frozen epochs on vectors (n, d): fusion and head learn as they would.

        The columns are standardised by all training rows. The rate is constant, images are as
        they are, and each epoch is validated on these vectors too.
        """
        network, options, device = self.network, self.options, self.network.mean.device
        train = torch.from_numpy(self.train_rows)
        network.standardise(vectors[train])
        X = (vectors.to(device) - network.mean) / network.scale  # (n, d)
        optimiser = torch.optim.AdamW(
            network.joint.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        held = torch.from_numpy(self.validation_rows).to(device)
        for epoch in range(options.freeze_epochs):
            derived = self.seed * 7919 + epoch
            generator = torch.Generator().manual_seed(derived)
            order = train[torch.randperm(len(train), generator=generator)]
            total = torch.zeros((), device=device)
            network.joint.train()
            with seeded(derived, device):
                for rows in torch.split(order.to(device), options.batch_size):
                    loss = functional.cross_entropy(
                        network.joint(X[rows]), self.codes[rows],
                        label_smoothing=options.label_smoothing,
                    )  # fmt: skip
                    optimiser.zero_grad(set_to_none=True)
                    torch.autograd.backward(loss)
                    optimiser.step()
                    total += loss.detach() * len(rows)
            network.joint.eval()
            with torch.inference_mode():
                logits = network.joint(X[held]).float().cpu()  # (v, classes)
            if self.average is not None:
                self.average.update_parameters(network)
            self.progress.loss, self.progress.seen = total.item() / len(order), 1
            self._close_epoch(math.nan, logits)

    def logits(self, rows: Rows, keep: bool = False) -> Tensor:
        """Logits (n, classes), float32 on the CPU, of images as extraction sees them.

        With `keep` they will be asked for again.
        """
        averaged = self.average is not None and not self.progress.done
        model: Any = self.average.module if averaged and self.average else self.network
        return infer(model, self.pixels, rows, self.accelerator, keep)

    def _epoch(self) -> None:
        """The steps of an epoch that are not done yet."""
        progress, options, device = self.progress, self.options, self.accelerator.device
        derived = self.seed * _EPOCH_SEED + progress.epoch
        generator = torch.Generator().manual_seed(derived)
        order = torch.randperm(len(self.train_rows), generator=generator)
        drawn = draw(self.pixels.sizes[torch.from_numpy(self.train_rows)], options, generator)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # A batch of one image has no batch statistics to train on.
        sizes = [len(batch) for batch in torch.split(order, options.batch_size)]
        sizes = [size for size in sizes if size >= 2 * world] or [len(order)]
        starts = range(0, len(order), options.batch_size)
        todo = [*zip(starts, sizes, strict=False)][progress.step :]
        mine = [slice(start + rank, start + size, world) for start, size in todo]
        rows = self.train_rows[order.numpy()]  # (n,)
        y = self.codes[torch.from_numpy(rows).to(device)]  # (n,)
        batches = self.pixels.train_batches(rows, drawn[order], mine)
        self.network.train()
        reported = time.monotonic()
        with seeded(derived * 31 + rank, device):
            self._put_rng()
            for batch, some, (_, size) in zip(batches, mine, todo, strict=True):
                self._set_rate(len(sizes))
                loss = self._stepper.step(batch, y[some], size)
                progress.step += 1
                self._count(loss, size, last=progress.step == len(sizes))
                if time.monotonic() - reported > _SAY_EVERY:
                    reported = time.monotonic()
                    log.info("%sepoch %d: step %d of %d, loss %.4f", self._label,
                             progress.epoch + 1, progress.step, len(sizes),
                             float(progress.loss) / progress.seen)  # fmt: skip
                if time.monotonic() - self._saved > 60 * self._minutes:
                    self._save(within=True)
        progress.step, progress.rng = 0, {}

    def _set_rate(self, steps: int) -> None:
        step = self.progress.epoch * steps + self.progress.step
        joint, *backbones = self.optimiser.param_groups
        joint["lr"] = joint["base"] * self.options.factor(step, steps)
        factor = self.options.backbone_factor(step, steps)
        for group in backbones:
            group["lr"] = group["base"] * factor

    def _count(self, loss: Tensor, images: int, last: bool) -> None:
        """Add a step's loss up, and stop where it is no number."""
        progress = self.progress
        on_gpu = loss.device.type == "cuda"
        progress.loss = progress.loss + (loss if on_gpu else loss.item())
        progress.seen += images
        if on_gpu and not last and progress.step % _LOOK_EVERY:
            return
        progress.loss = float(progress.loss)
        if not math.isfinite(progress.loss):
            rate = max(group["lr"] for group in self.optimiser.param_groups)
            raise FeatcacheError(
                f"{self._label}the training loss became {progress.loss} by step {progress.step} of "
                f"epoch {progress.epoch + 1} (lr {rate:g})",
                "Try a lower --lr or --backbone-lr, --warmup 1, --clip 1, or --precision fp32.",
            )

    def _close_epoch(self, speed: float, logits: Tensor | None = None) -> None:
        """Validate, keep the weights if they are the best so far, and say how it goes."""
        progress = self.progress
        history = progress.history
        loss = float(progress.loss) / progress.seen
        history.setdefault("train_loss", []).append(loss)
        line, better = f"train loss {loss:.4f}", True
        if len(self.validation_rows):
            val_loss, accuracy = self._validate(logits)
            history.setdefault("val_loss", []).append(val_loss)
            history.setdefault("val_accuracy", []).append(accuracy)
            line += f", val loss {val_loss:.4f}, val accuracy {accuracy:.4f}"
            best = progress.best
            better = not best or (accuracy, -val_loss) > (best[0], -best[1])
            if better:
                progress.best = [accuracy, val_loss, float(progress.epoch)]
        if better:
            model = self.network if self.average is None else self.average.module
            progress.kept = _on_cpu(model.state_dict())
        progress.epoch, progress.loss, progress.seen = progress.epoch + 1, 0.0, 0
        progress.epochs.append(self._seconds - sum(progress.epochs))
        left = (self.options.epochs - progress.epoch) * progress.epochs[-1]
        rate = "" if math.isnan(speed) else f", {speed:,.0f} images/s"
        log.info("%sepoch %d of %d: %s%s, %.0f s left", self._label, progress.epoch,
                 self.options.epochs, line, rate, left)  # fmt: skip

    def _validate(self, logits: Tensor | None) -> tuple[float, float]:
        """Mean cross entropy and accuracy on the validation rows."""
        if logits is None:
            logits = self.logits(self.validation_rows, keep=True)  # (n, classes)
        truth = self.codes.cpu()[torch.from_numpy(self.validation_rows)]
        loss = functional.cross_entropy(logits, truth).item()
        return loss, (logits.argmax(1) == truth).float().mean().item()

    @property
    def _seconds(self) -> float:
        return self._before + self._meter.seconds

    def _save(self, within: bool = False) -> None:
        self._saved = time.monotonic()
        progress = self.progress
        progress.seconds, progress.loss = self._seconds, float(progress.loss)
        progress.parts = self._stepper.parts
        if self._folder is None or not self.accelerator.is_main_process:
            return
        progress.network = {} if progress.done else self.network.state_dict()
        progress.optimiser = {} if progress.done else self.optimiser.state_dict()
        if self.average is not None and not progress.done:
            progress.average = self.average.state_dict()
        progress.rng = self._get_rng() if within else {}
        save_checkpoint(self._folder, progress)

    def _get_rng(self) -> State:
        device = self.accelerator.device
        cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **cuda}

    def _put_rng(self) -> None:
        if "cpu" in self.progress.rng:
            torch.set_rng_state(self.progress.rng["cpu"])
        if "cuda" in self.progress.rng:
            torch.cuda.set_rng_state(self.progress.rng["cuda"], self.accelerator.device)


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


def save_checkpoint(folder: Path, progress: Progress) -> None:
    """Write a checkpoint in place of the one before, all or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    plain = {one.name: getattr(progress, one.name) for one in fields(progress)}
    with guard_writes(path):
        with replacing(path) as temporary:
            torch.save(plain, temporary)
            sync(temporary)
        sync(folder)


def load_checkpoint(folder: Path) -> Progress | None:
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


def _on_cpu(state: State) -> State:
    return {name: copy.deepcopy(value.detach().cpu()) for name, value in state.items()}
