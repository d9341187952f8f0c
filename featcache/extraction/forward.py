"""Forward: a network made ready to run, in each of the ways an engine can run it.

Each takes uint8 pixels of one fixed shape and gives float32 vectors. `FORWARDS` at the foot names
them.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from featcache.errors import FeatcacheError
from featcache.extraction.folding import diffuse_weights, fold, fuse_for_cpu, round_weights
from featcache.extraction.preprocess import Preprocess

Forward = Callable[[torch.Tensor], torch.Tensor]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FromPixels(nn.Module):
    """Normalise, cast, run: uint8 (b, 3, h, w) -> float32 (b, d)."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self._preprocess = preprocess
        self._dtype = dtype
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._dtype is torch.bfloat16 and pixels.device.type == "cpu":
            x = self._preprocess.normalise_bf16(pixels)  # (b, 3, h, w)
        else:
            x = self._preprocess.normalise(pixels).to(self._dtype)
        vectors: torch.Tensor = self.network(x).float()  # (b, d)
        return vectors


def eager(
    network: nn.Module, preprocess: Preprocess, device: str, precision: str, batch_size: int
) -> Forward:
    """Operation by operation, with batch norms folded; on the processor also fused."""
    example = _example(preprocess)
    module = fold(network, example)
    if device == "cpu" and precision != "fp16":
        module = fuse_for_cpu(module, example, PRECISIONS[precision], batch_size)
    elif precision == "bf16":
        module = round_weights(module)
    else:
        module = module.to(PRECISIONS[precision])
    module = FromPixels(module, preprocess, PRECISIONS[precision]).to(device)
    return channels_last(module)


def compiled(
    network: nn.Module, preprocess: Preprocess, device: str, precision: str, batch_size: int
) -> Forward:
    """As one graph by torch.compile, its weights frozen in."""
    module = fold(network, _example(preprocess))
    module = round_weights(module) if precision == "bf16" else module.to(PRECISIONS[precision])
    module = FromPixels(module, preprocess, PRECISIONS[precision]).to(device)
    module = channels_last(module)
    run: Forward = torch.compile(module, dynamic=False, options={"freezing": device == "cpu"})
    return run


def openvino(
    network: nn.Module, preprocess: Preprocess, device: str, precision: str, batch_size: int
) -> Forward:
    """As one graph by OpenVINO, on the processor."""
    if device != "cpu":
        raise FeatcacheError("openvino runs on the processor", "--device cpu, or --engine compile")
    if not has_openvino():
        raise FeatcacheError("openvino is not installed", 'pip install "featcache[openvino]"')
    import openvino as ov

    side = preprocess.crop
    module = fold(network, _example(preprocess))
    if precision == "bf16":
        diffuse_weights(module)
    pixels = FromPixels(module, preprocess, torch.float32)
    shape = [batch_size, 3, side, side]
    example = torch.zeros(shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of how OpenVINO traces
        graph: Any = ov.convert_model(pixels, example_input=example, input=[(shape, ov.Type.u8)])
    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
    ready = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def run(batch: torch.Tensor) -> torch.Tensor:
        found = ready(batch.contiguous().numpy())[0]  # (b, d)
        return torch.from_numpy(found.copy())

    return run


def channels_last(module: nn.Module) -> nn.Module:
    """Weights laid out for maps whose channels lie side by side, but none of five axes."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


def _example(preprocess: Preprocess) -> torch.Tensor:
    """The same noise each time, (1, 3, crop, crop); torch's own generator is left alone."""
    side = preprocess.crop
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def has_openvino() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_compiler() -> bool:
    """Whether torch.compile has what it needs for the processor: a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))


FORWARDS: dict[str, Callable[[nn.Module, Preprocess, str, str, int], Forward]] = {
    "eager": eager,
    "compile": compiled,
    "openvino": openvino,
}
