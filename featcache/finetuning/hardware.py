"""Hardware: accelerate set up for a device and a precision, and what the device spends."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

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
        from accelerate.utils import AutocastKwargs
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
    # Weights that are kept in half precision would be those of the first step of a CUDA graph.
    anew = AutocastKwargs(cache_enabled=False)
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=PRECISIONS[precision], kwargs_handlers=[anew]
    )
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


def may_capture(accelerator: Any) -> bool:
    """Whether a step can be a CUDA graph: by one process alone, and not with scaled gradients."""
    cuda = accelerator.device.type == "cuda"
    return cuda and accelerator.num_processes == 1 and accelerator.scaler is None


def capture(work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """What `work` does with tensors like these as one CUDA graph; nothing is done yet.

    It has to have been done `beside` before, so that its kernels are chosen and what it keeps is
    made. What is returned takes new tensors of the same shapes.

    Raises
    ------
    RuntimeError
        If it can't be captured.
    """
    fixed = [tensor.clone() for tensor in inputs]
    device, graph = fixed[0].device, torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.current_stream(device)):  # a failure would leave another
        try:
            # Other threads page-lock memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = work(*fixed)
        except RuntimeError:
            # In some versions of torch a failed capture keeps dropout's generator; one that
            # succeeds gives it back.
            with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
                torch.zeros(1, device=device)
            raise

    def replay(*new: Tensor) -> Tensor:
        for place, tensor in zip(fixed, new, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result.clone()

    return replay


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """On CUDA, work on a stream that is not the default one, as before a capture it has to be."""
    if device.type != "cuda":
        yield
        return
    stream, usual = _other_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(usual)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        usual.wait_stream(stream)


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


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
