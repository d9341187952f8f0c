"""Engine: how the forward pass is run. The one place that sets eval and inference mode."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.errors import FeatcacheError, RecipeError, unknown
from featcache.extraction.backbone import Backbone

log = logging.getLogger("featcache")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_KINDS = ("eager",)


@dataclass(frozen=True)
class Engine:
    """Where and in what precision networks run.

    Attributes
    ----------
    device : str
        "cpu" or "cuda:0" and the like.
    precision : {"fp32", "bf16", "fp16"}
    kind : {"eager"}
    batch_size : int
        Every forward pass has exactly this many images: a shorter batch is filled up, so that
        a row's bits don't depend on how many images came with it.
    """

    device: str = "cpu"
    precision: str = "fp32"
    kind: str = "eager"
    batch_size: int = 32

    def load(self, backbone: Backbone) -> Network:
        """Build the backbone's network on the device."""
        return Network(backbone, self)

    def describe(self) -> dict[str, str]:
        """What is recorded with the features it makes."""
        import torchvision

        name = self.device
        if name.startswith("cuda"):
            name = torch.cuda.get_device_name(self.device)
        return {
            "device": name,
            "engine": self.kind,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        }


class Network:
    """A backbone's network, ready to run.

    Attributes
    ----------
    dim : int
        Width d of its vectors.
    """

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self._engine = engine
        self._preprocess = backbone.preprocess
        self._dtype = PRECISIONS[engine.precision]
        module = backbone.build().eval().requires_grad_(False)
        self._module = module.to(engine.device, self._dtype)
        self._module.to(memory_format=torch.channels_last)
        self.dim = self._probe(backbone)

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed images.

        Parameters
        ----------
        pixels : uint8 array of shape (n, 3, crop, crop)

        Returns
        -------
        float32 array of shape (n, dim)
        """
        n, full = len(pixels), self._engine.batch_size
        if n > full:
            parts = [self.run(pixels[start : start + full]) for start in range(0, n, full)]
            return np.concatenate(parts)
        batch = torch.zeros((full, *pixels.shape[1:]), dtype=torch.uint8)  # (b, 3, h, w)
        batch[:n] = torch.from_numpy(pixels)
        batch = batch.to(self._engine.device, memory_format=torch.channels_last)
        with torch.inference_mode(), self._exact():
            x = self._preprocess.normalise(batch).to(self._dtype)  # (b, 3, h, w)
            output = self._module(x)  # (b, d)
        if output.ndim != 2:
            raise FeatcacheError(f"the network gives an array of {output.ndim} dimensions, not 2")
        vectors: NDArray[np.float32] = output[:n].float().cpu().numpy()  # (n, d)
        return vectors

    def _exact(self) -> AbstractContextManager[Any]:
        """On CUDA, keep fp32 from becoming TF32 inside convolutions."""
        if not self._engine.device.startswith("cuda"):
            return nullcontext()
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )

    def _probe(self, backbone: Backbone) -> int:
        side = backbone.preprocess.crop
        try:
            return int(self.run(np.zeros((1, 3, side, side), np.uint8)).shape[1])
        except (RuntimeError, ValueError, AssertionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise FeatcacheError(
                f"{backbone.name} can't run on images of {side} px: {first}",
                "Choose another --image-size, or a smaller --batch-size if memory ran out.",
            ) from None


def open_engine(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
) -> Engine:
    """Choose how to run.

    Parameters
    ----------
    device : str, default "auto"
        "auto" (a CUDA device where there is one), "cpu", "cuda" or "cuda:1".
    precision : str, default "auto"
        "auto" is "fp32".
    engine : str, default "auto"
        "auto" is "eager".
    batch_size : int or "auto"
        "auto" is 32 on the processor and 128 on a GPU.

    Raises
    ------
    UnknownName, RecipeError
        Where there is no such device, precision or engine.
    """
    place = _device(device)
    if precision not in (*PRECISIONS, "auto"):
        raise unknown("precision", precision, (*PRECISIONS, "auto"))
    if engine not in (*_KINDS, "auto"):
        raise unknown("engine", engine, (*_KINDS, "auto"))
    if batch_size == "auto":
        batch_size = 32 if place == "cpu" else 128
    if not isinstance(batch_size, int) or batch_size < 1:
        raise RecipeError(f"batch size {batch_size!r} is no positive number")
    if place == "cpu" and torch.cuda.is_available():
        log.warning("there is a GPU, and it is not used (--device cpu)")
    return Engine(
        device=place,
        precision="fp32" if precision == "auto" else precision,
        kind="eager",
        batch_size=batch_size,
    )


def _device(device: str) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise unknown("device", device, ("auto", "cpu", "cuda", "cuda:0"))
    if kind == "cpu":
        return "cpu"
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= there:
        raise RecipeError(f"no device {device}: {there} CUDA devices are there", "--device cpu")
    return f"cuda:{int(number or 0)}"
