"""Hardware: accelerate set up for a device and a precision, and what the device spends."""

from __future__ import annotations

import ctypes
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from featcache.errors import FeatcacheError, RecipeError, unknown
from featcache.extraction.engine import choose_device

log = logging.getLogger("featcache")

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def open_accelerator(device: str = "auto", precision: str = "auto") -> Any:
    """An `accelerate.Accelerator`, alone or as one of those that `accelerate launch` started.

    Parameters
    ----------
    device : str, default "auto"
        "auto" (a CUDA device where there is one), "cpu", "cuda" or "cuda:1".
    precision : {"auto", "fp32", "bf16", "fp16"}, default "auto"
        Of the forward pass; weights stay float32. "auto" is bf16 on CUDA devices that have it in
        hardware (Ampere and later), else fp32.

    Raises
    ------
    FeatcacheError
        If accelerate is not installed.
    RecipeError, UnknownName
        If there is no such device or precision.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise FeatcacheError(
            "fine-tuning needs the package accelerate, which is not installed",
            "pip install 'accelerate>=0.30', or pip install 'featcache[finetune]'",
        ) from error
    on_cpu = _choose(device) == "cpu"
    if precision not in (*PRECISIONS, "auto"):
        raise unknown("precision", precision, (*PRECISIONS, "auto"))
    if precision == "auto":
        precision = "bf16" if not on_cpu and torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    if precision == "fp16" and on_cpu:
        raise RecipeError("fp16 can't be trained on the processor", "--precision bf16, or fp32")
    # accelerate keeps its settings in one place for the process: an earlier run's must not stay.
    launched = PartialState._shared_state.get("num_processes", 1) > 1
    AcceleratorState._reset_state(reset_partial_state=not launched)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=PRECISIONS[precision])
    if on_cpu and torch.cuda.is_available():
        log.warning("there is a GPU, and it is not used (--device cpu)")
    return accelerator


def precision_of(accelerator: Any) -> str:
    """ "fp32", "bf16" or "fp16"."""
    names = {theirs: ours for ours, theirs in PRECISIONS.items()}
    return names[str(accelerator.mixed_precision)]


def optimiser_kernels(accelerator: Any) -> dict[str, Any]:
    """How AdamW runs: on CUDA in one kernel, which a graph can hold; not with scaled gradients."""
    fused = accelerator.device.type == "cuda" and accelerator.scaler is None
    return {"fused": fused or None, "capturable": fused}


def fastest_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, cuDNN tries once for each shape which of its kernels is the fastest."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True)


def _choose(device: str) -> str:
    """ "cpu" or "cuda"; one that is named by its number becomes torch's current one."""
    place = choose_device(device)
    if ":" in device and place != "cpu":
        torch.cuda.set_device(place)
    return place.partition(":")[0]


class Meter:
    """Wall time and, where the driver tells it, the energy of the GPU since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self._joules = gpu_joules(device)

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self._start

    @property
    def joules(self) -> float | None:
        """Energy so far; None where it can't be known."""
        now = gpu_joules(self._device)
        return None if now is None or self._joules is None else now - self._joules


def gpu_joules(device: torch.device) -> float | None:
    """What the GPU has used since its driver was loaded; None on other devices, or old drivers.

    Asked of NVIDIA's management library, which counts in thousandths (Volta and later).
    """
    if device.type != "cuda":
        return None
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        if library.nvmlInit_v2():
            return None
        try:
            failed = library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
            failed = failed or library.nvmlDeviceGetTotalEnergyConsumption(
                handle, ctypes.byref(energy)
            )
            return None if failed else energy.value / 1000
        finally:
            library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
