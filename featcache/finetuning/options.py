"""Options: how a network is fine-tuned, and the protocols that fix all of them at once.

The defaults are what won by validation on several data sets (`docs/fine-tuning.md`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from featcache.errors import RecipeError, unknown

SCHEDULES = ("constant", "cosine")
PROTOCOLS: dict[str, dict[str, Any]] = {  # what each has in place of the defaults
    "default": {},
    "study": {  # the two studies that this project redoes, to the letter
        "freeze_epochs": 3, "freeze_bn": False, "lr": 3e-4, "backbone_lr": None,
        "schedule": "constant", "warmup": 0.0, "clip": 0.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How a network is trained; AdamW on the cross entropy.

    Attributes
    ----------
    epochs : int, default 8
        Passes over the training rows, the frozen ones included.
    freeze_epochs : int, default 1
        The first epochs, in which the backbones don't change: neither weights nor batch statistics.
    freeze_bn : bool, default True
        Whether the backbones' batch statistics stay as they are after that too.
    batch_size : int, default 64
        Images in one step of the optimiser, over all processes together.
    accumulate : int, default 1
        Into how many parts a batch is cut to save memory. The gradient is that of the whole batch.
    lr : float, default 1e-3
        Of the fusion and the head.
    backbone_lr : float or None, default 1e-4
        Of the backbones; None means `lr`.
    layer_decay : float, default 1.0
        What each stage of a backbone has of the rate of the stage above it.
    weight_decay : float, default 1e-4
    label_smoothing : float, default 0.1
    schedule : {"constant", "cosine"}, default "cosine"
        "cosine" falls along half a cosine to 0 at the end.
    warmup : float, default 1.0
        Epochs in which the rate rises from 0; that of the backbones rises once they are let go.
    ema : float, default 0.0
        Decay of a moving average of the weights, which is what is validated and kept; 0: none.
    mixup, cutmix : float, default 0.0
        The alpha of each; 0: none. With both, one of them is drawn for each batch.
    clip : float, default 1.0
        Most that the gradient's norm may be; 0: no limit.
    patience : int, default 0
        Epochs without a better validation accuracy before training stops; 0: never.
    validation : float, default 0.1
        Share of the training rows, stratified and by whole groups, that picks the best epoch where
        the data has no "val" split; 0: none, and the last epoch counts.
    crop_scale : float, default 0.5
        Least share of the image's area that a random crop has; 1 with `flip` and `jitter` off
        leaves training images as they are, but for the backbone's own resizing.
    flip : bool, default True
        Half of the training images are mirrored.
    jitter : float, default 0.2
        How far brightness, contrast and saturation are changed, each by a factor of 1 ± this.

    Raises
    ------
    RecipeError
        For a value out of range.
    UnknownName
        For another `schedule`.
    """

    epochs: int = 8
    freeze_epochs: int = 1
    freeze_bn: bool = True
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 1e-3
    backbone_lr: float | None = 1e-4
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    schedule: str = "cosine"
    warmup: float = 1.0
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip: float = 1.0
    patience: int = 0
    validation: float = 0.1
    crop_scale: float = 0.5
    flip: bool = True
    jitter: float = 0.2

    def __post_init__(self) -> None:
        for name, lowest in _WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise RecipeError(f"{name} is {value!r}", f"Give a whole number from {lowest}.")
        for name, (least, most) in _REAL.items():
            value = getattr(self, name)
            if name == "backbone_lr" and value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise RecipeError(f"{name} is {value!r}", f"Give a number from {least} to {most}.")
        if self.freeze_epochs > self.epochs:
            raise RecipeError(
                f"{self.freeze_epochs} of {self.epochs} epochs are frozen",
                "Give more --epochs, or fewer --freeze-epochs.",
            )
        if self.batch_size < self.accumulate:
            raise RecipeError(
                f"a batch of {self.batch_size} can't be cut into {self.accumulate} parts",
                "Give a larger --batch-size, or a smaller --accumulate.",
            )
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", str(self.schedule), SCHEDULES)

    @classmethod
    def of(cls, protocol: str = "default", **changes: Any) -> Options:
        """The options of a protocol, but for some.

        Raises
        ------
        UnknownName
            If there is no such protocol.
        """
        if protocol not in PROTOCOLS:
            raise unknown("protocol of fine-tuning", protocol, PROTOCOLS)
        return cls(**PROTOCOLS[protocol] | changes)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def besides(self, protocol: str) -> dict[str, Any]:
        """The options that are not as in a protocol."""
        usual = Options.of(protocol).plain()
        return {name: value for name, value in self.plain().items() if value != usual[name]}

    def named(self) -> dict[str, Any]:
        """The shortest way to say them: the nearest protocol, and what is not as in it."""
        protocol = min(PROTOCOLS, key=lambda name: len(self.besides(name)))
        changed = self.besides(protocol)
        return changed if protocol == "default" else {"protocol": protocol, **changed}

    def factor(self, step: int, steps: int) -> float:
        """What the rate of the fusion and the head is multiplied by.

        Parameters
        ----------
        step : int
            Steps of the optimiser before this one.
        steps : int
            Steps in one epoch.
        """
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / math.ceil(rising)
        if self.schedule == "constant":
            return 1.0
        whole = max(1.0, self.epochs * steps - rising)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / whole))

    def backbone_factor(self, step: int, steps: int) -> float:
        """What the backbones' rate is multiplied by; see `factor`."""
        since, rising = step - self.freeze_epochs * steps, self.warmup * steps
        factor = self.factor(step, steps)
        if not self.freeze_epochs or not 0 <= since < rising:
            return factor
        return factor * (since + 1) / math.ceil(rising)


_WHOLE = {"epochs": 1, "freeze_epochs": 0, "batch_size": 1, "accumulate": 1, "patience": 0}
_REAL: dict[str, tuple[float, float]] = {
    "lr": (1e-12, 1e3),
    "backbone_lr": (0, 1e3),
    "layer_decay": (0, 1),
    "weight_decay": (0, 1e3),
    "label_smoothing": (0, 0.999),
    "warmup": (0, 1e6),
    "ema": (0, 0.999999),
    "mixup": (0, 1e3),
    "cutmix": (0, 1e3),
    "clip": (0, 1e6),
    "validation": (0, 0.9),
    "crop_scale": (0.01, 1),
    "jitter": (0, 0.999),
}
