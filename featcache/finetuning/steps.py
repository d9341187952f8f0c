"""Steps: one step of the optimiser, in parts where memory is short, on one device or several."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from featcache.errors import FeatcacheError, first_line
from featcache.extraction.network import no_memory
from featcache.finetuning.augment import mixer
from featcache.finetuning.data import Pixels
from featcache.finetuning.hardware import beside, capture, fastest_kernels, may_capture
from featcache.finetuning.network import FusedNetwork
from featcache.finetuning.options import Options

log = logging.getLogger("featcache")

_BEFORE = 3  # steps before a capture
_RATE = torch.float32  # what AdamW's kernel on CUDA reads


class Stepper:
    """Takes steps with one batch each.

    On CUDA the first are taken operation by operation; then all of a step, from what
    `Pixels.train_batches` gives to the weights that it moves, is replayed as one graph, in which no
    kernel waits for the processor. A last, smaller batch and the parts of one that was cut are not.

    Parameters
    ----------
    network : FusedNetwork
    optimiser : what accelerate made of the optimiser
    pixels : Pixels
    classes : int
    options : Options
    accelerator : accelerate.Accelerator
    average : AveragedModel or None
        Moved along after each step.

    Attributes
    ----------
    parts : int
        Into how many parts a batch is cut; doubles where memory runs out.
    """

    def __init__(
        self,
        network: FusedNetwork,
        optimiser: Any,
        pixels: Pixels,
        classes: int,
        options: Options,
        accelerator: Any,
        average: AveragedModel | None = None,
    ) -> None:
        self.parts = options.accumulate
        self._network, self._optimiser, self._pixels = network, optimiser, pixels
        self._options, self._accelerator, self._average = options, accelerator, average
        self._mix = mixer(options.mixup, options.cutmix, classes)
        self._model: Any = None
        self._captures, self._taken = may_capture(accelerator), 0
        self._replay: Callable[..., Tensor] | None = None
        self._rates = [
            torch.zeros((), dtype=_RATE, device=accelerator.device) for _ in optimiser.param_groups
        ]

    def wrap(self) -> None:
        """Let accelerate take the network anew, after it was frozen or let go."""
        self.release()
        self._accelerator._models.clear()
        bare = self._accelerator.unwrap_model(self._network, keep_fp32_wrapper=False)
        self._model = self._accelerator.prepare_model(bare)

    def step(self, batch: Sequence[Tensor], y: Tensor, whole: int) -> Tensor:
        """Learn from one batch.

        Parameters
        ----------
        batch : sequence of Tensor
            This process's part of a batch of `Pixels.train_batches`.
        y : int64 tensor of shape (b,)
            Its classes.
        whole : int
            Images in the batch over all processes.

        Returns
        -------
        Tensor of shape ()
            The loss, summed over the whole batch.

        Raises
        ------
        FeatcacheError
            If not even one image at a time fits into the memory.
        """
        inputs = (*batch, y)
        if self._mix is not None:  # what it draws differs from batch to batch: not in a graph
            inputs = self._mix(self._pixels.augment(*batch), y)  # (b, 3, side, side), (b, classes)
        full = whole == self._options.batch_size
        while True:
            try:
                with fastest_kernels(self._accelerator.device) if full else nullcontext():
                    loss = self._attempt(inputs, whole)
                break
            except (RuntimeError, MemoryError) as error:
                if not no_memory(error):
                    raise
                if self._replay is not None:
                    self._captures = False  # a graph has memory of its own
                elif not self._pixels.forget():
                    self._cut(len(y))
                self.release()
        if self._average is not None:
            if self._average.n_averaged == 0:  # it is counted on the processor
                self._average.module.load_state_dict(self._network.state_dict())
            self._average.n_averaged += 1
        return loss

    def release(self) -> None:
        """Forget the graph, and give its memory back."""
        self._replay, self._taken = None, 0
        self._optimiser.zero_grad(set_to_none=True)  # they lie there
        if self._accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def _cut(self, images: int) -> None:
        if self.parts >= images:
            raise FeatcacheError(
                f"out of memory with one image of {self._pixels.side} px at a time",
                "Give a smaller --image-size, or smaller backbones.",
            )
        self.parts = min(2 * self.parts, images)
        log.warning(
            "out of memory: each batch is now cut into %d parts; the batch stays %d",
            self.parts, self._options.batch_size,
        )  # fmt: skip

    def _attempt(self, inputs: Sequence[Tensor], whole: int) -> Tensor:
        """One step, by the graph if there is one, or if it is time for one."""
        fits = self.parts == 1 and whole == self._options.batch_size
        if not self._captures or not fits:
            return self._learn(whole, *inputs)
        if self._taken < _BEFORE:
            self._taken += 1
            with beside(self._accelerator.device):
                return self._learn(whole, *inputs)
        for rate, group in zip(self._rates, self._optimiser.param_groups, strict=True):
            rate.fill_(group["lr"])
        if self._replay is None:
            self._replay = self._capture(inputs, whole)
        return self._learn(whole, *inputs) if self._replay is None else self._replay(*inputs)

    def _capture(self, inputs: Sequence[Tensor], whole: int) -> Callable[..., Tensor] | None:
        groups = self._optimiser.param_groups

        def work(*fixed: Tensor) -> Tensor:
            given = [group["lr"] for group in groups]
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate  # a number would stay what it is now
            try:
                return self._learn(whole, *fixed)
            finally:
                for group, lr in zip(groups, given, strict=True):
                    group["lr"] = lr

        self._optimiser.zero_grad(set_to_none=True)  # so that gradients lie in the graph's memory
        try:
            return capture(work, inputs)
        except RuntimeError as error:
            log.warning("steps are no CUDA graph, and slower: %s", first_line(error))
        self._captures = False
        self.release()
        return None

    def _learn(self, whole: int, *inputs: Tensor) -> Tensor:
        """Move the weights; the loss, summed over the whole batch."""
        *batch, y = inputs
        x = self._pixels.augment(*batch) if self._mix is None else batch[0]
        accelerator, options = self._accelerator, self._options
        self._optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        parts = min(self.parts, len(x))
        cut = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
        for number, (part, target) in enumerate(cut, 1):
            seen = self._pixels.as_seen(part)
            with nullcontext() if number == parts else accelerator.no_sync(self._model):
                with accelerator.autocast():
                    logits = self._model(*seen)  # (m, classes)
                loss = functional.cross_entropy(
                    logits.float(), target, reduction="sum",
                    label_smoothing=options.label_smoothing,
                )  # fmt: skip
                # Processes' gradients are averaged, and each has only its part of the batch.
                accelerator.backward(loss * (accelerator.num_processes / whole))
            total += loss.detach()
        if options.clip:
            accelerator.clip_grad_norm_(self._model.parameters(), options.clip)
        self._optimiser.step()
        if self._average is not None:
            self._move_average(self._average)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
        return total

    @torch.no_grad()
    def _move_average(self, average: AveragedModel) -> None:
        """What `AveragedModel.update_parameters` does after its first time, in a few kernels."""
        mean: list[Tensor] = list(average.module.parameters())
        new: list[Tensor] = list(self._network.parameters())
        torch._foreach_lerp_(mean, new, 1 - self._options.ema)
        torch._foreach_copy_(list(average.module.buffers()), list(self._network.buffers()))


def infer(
    network: FusedNetwork,
    pixels: Pixels,
    rows: NDArray[np.intp],
    accelerator: Any,
    keep: bool = False,
) -> Tensor:
    """Logits (n, classes), float32 on the CPU, in evaluation mode; processes share the work.

    With `keep` these rows will be asked for again, see `Pixels.eval_batches`.
    """
    was = network.training
    rank, world = accelerator.process_index, accelerator.num_processes
    padded = np.resize(rows, math.ceil(len(rows) / world) * world)  # (m * world,)
    network.eval()
    with torch.inference_mode(), accelerator.autocast():
        batches = pixels.eval_batches(padded[rank::world], keep)
        parts = [_forward(network, seen) for seen in batches]
    logits = torch.cat(parts)  # (m, classes)
    if world > 1:
        gathered = accelerator.gather(logits)  # (world * m, classes), process by process
        logits = gathered.view(world, len(logits), -1).transpose(0, 1).flatten(0, 1)
    network.train(was)
    return logits[: len(rows)].clone().cpu()


def _forward(network: FusedNetwork, seen: Sequence[Tensor]) -> Tensor:
    """Logits (b, classes), float32; of half the batch at a time if memory is short."""
    try:
        logits: Tensor = network(*seen).float()
        return logits
    except (RuntimeError, MemoryError) as error:
        if not no_memory(error) or len(seen[0]) == 1:
            raise
    if seen[0].device.type == "cuda":
        torch.cuda.empty_cache()
    halves = zip(*(x.tensor_split(2) for x in seen), strict=True)
    return torch.cat([_forward(network, half) for half in halves])
