"""Network: a backbone's network, ready to run. The one place that sets eval and inference mode.

`FORWARDS` names the ways in which an engine can run it; each takes uint8 pixels of one fixed shape
and gives float32 vectors.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from featcache.errors import FeatcacheError, first_line
from featcache.extraction.backbone import Backbone
from featcache.extraction.batch import Decoded
from featcache.extraction.conv_bn_fusion import diffuse_weights, fold, fuse_for_cpu, round_weights
from featcache.extraction.preprocess import Pixels, Preprocess

Forward = Callable[[torch.Tensor], torch.Tensor]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"  # no torch dtype: a quantised network runs in OpenVINO alone


class FromPixels(nn.Module):
    """Normalise, cast, run: uint8 (b, 3, h, w) -> float32 (b, d)."""

    mean: torch.Tensor
    std: torch.Tensor
    mean_of_pixels: torch.Tensor
    variance_of_pixels: torch.Tensor

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, dtype: torch.dtype, device: str
    ) -> None:
        super().__init__()
        self.network = network
        self._preprocess = preprocess
        self._dtype = dtype
        # In half precision in one pass: pixels up to 255 are exact in it.
        self._at_once = dtype is torch.bfloat16 or (dtype is torch.float16 and device != "cpu")
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(shape), persistent=False)
        mean = torch.tensor(preprocess.mean) * 255
        variance = (torch.tensor(preprocess.std) * 255) ** 2
        self.register_buffer("mean_of_pixels", mean, persistent=False)
        self.register_buffer("variance_of_pixels", variance, persistent=False)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._at_once:
            # torch 2.11 wants an eps above 0; this one is lost in the rounding of the variance.
            x = functional.batch_norm(
                pixels.to(self._dtype), self.mean_of_pixels, self.variance_of_pixels, eps=1e-12
            )  # (b, 3, h, w)
        else:
            x = pixels.float().div_(255).sub_(self.mean).div_(self.std).to(self._dtype)
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
    module = FromPixels(module, preprocess, PRECISIONS[precision], device).to(device)
    return channels_last(module)


def replayed(forward: Forward, shape: tuple[int, ...], device: str) -> Forward:
    """The same kernels as one CUDA graph, so that no kernel waits for the processor to start it.

    A network that can't be captured, or then gives other bits, stays as it is.
    """
    generator = torch.Generator(device).manual_seed(0)
    try:
        with torch.inference_mode(), _exact(True):
            pixels, other = (
                torch.randint(
                    256, shape, dtype=torch.uint8, device=device, generator=generator
                ).contiguous(memory_format=torch.channels_last)
                for _ in range(2)
            )  # (b, 3, h, w)
            beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(beside):
                for _ in range(2):  # what a network allocates or tunes in its first passes
                    forward(pixels)
            torch.cuda.current_stream(device).wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads page-lock memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                vectors = forward(pixels)  # (b, d)

            def run(batch: torch.Tensor) -> torch.Tensor:
                pixels.copy_(batch)
                graph.replay()
                return vectors.clone()

            if torch.equal(run(other), forward(other)):
                return run
            log.debug("a captured network gives other bits: not taken")
    except RuntimeError as error:
        log.debug("a network can't be captured: %s", first_line(error))
    return forward


def compiled(
    network: nn.Module, preprocess: Preprocess, device: str, precision: str, batch_size: int
) -> Forward:
    """As one graph by torch.compile, its weights frozen in."""
    module = fold(network, _example(preprocess))
    module = round_weights(module) if precision == "bf16" else module.to(PRECISIONS[precision])
    module = FromPixels(module, preprocess, PRECISIONS[precision], device).to(device)
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
    return run_graph(to_graph(network, preprocess, precision, batch_size), precision)


def to_graph(network: nn.Module, preprocess: Preprocess, precision: str, batch_size: int) -> Any:
    """OpenVINO's graph of a network, from uint8 pixels (b, 3, crop, crop); -1: any b."""
    # It would tell its makers over the network what it converts; NNCF would too.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov

    side = preprocess.crop
    module = fold(network, _example(preprocess))
    if precision == "bf16":
        diffuse_weights(module)
    pixels = FromPixels(module, preprocess, torch.float32, "cpu")
    shape = [batch_size, 3, side, side]
    example = torch.zeros([max(batch_size, 1), *shape[1:]], dtype=torch.uint8)
    level = logging.root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how OpenVINO traces
            return ov.convert_model(pixels, example_input=example, input=[(shape, ov.Type.u8)])
    finally:
        logging.root.setLevel(level)  # a conversion that fails leaves it at ERROR


def run_graph(graph: Any, precision: str) -> Forward:
    """An OpenVINO graph, ready to run; what int8 leaves unquantised is computed in fp32."""
    import openvino as ov

    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", INT8: "f32"}[precision]
    ready = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def run(batch: torch.Tensor) -> torch.Tensor:
        found = ready(batch.contiguous().numpy())[0]  # (b, d)
        return torch.from_numpy(found.copy())

    return run


def quantised(backbone: Backbone, batch_size: int) -> Forward:
    """A backbone's int8 network, as `quantising.calibrated` has left it."""
    import openvino as ov

    if backbone.quantised is None:
        raise FeatcacheError(f"{backbone.name} was not quantised", "Choose --precision fp32.")
    with np.load(io.BytesIO(backbone.quantised())) as stored:
        xml, weights = stored["xml"].tobytes(), stored["weights"].tobytes()
    graph: Any = ov.Core().read_model(xml, ov.Tensor(np.frombuffer(weights, np.uint8)))
    graph.reshape([batch_size, 3, backbone.preprocess.crop, backbone.preprocess.crop])
    return run_graph(graph, INT8)


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


def has_nncf() -> bool:
    """Whether the extra that quantises networks is installed, with OpenVINO to run them."""
    return has_openvino() and importlib.util.find_spec("nncf") is not None


def has_compiler() -> bool:
    """Whether torch.compile has what it needs for the processor: a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))


FORWARDS: dict[str, Callable[[nn.Module, Preprocess, str, str, int], Forward]] = {
    "eager": eager,
    "compile": compiled,
    "openvino": openvino,
}


log = logging.getLogger("featcache")

Vectors = NDArray[np.float32]
_NO_MEMORY = ("out of memory", "can't allocate", "alloc_failed", "unable to find an engine")


class Network:
    """A backbone's network, ready to run.

    Parameters
    ----------
    backbone : Backbone
    device : str
        "cpu" or "cuda:0" and the like.
    precision : {"fp32", "bf16", "fp16", "int8"}
    kind : {"eager", "compile", "openvino"}
        One that fails on this network is replaced by "eager", with a warning.
    batch_size : int
        Images in a forward pass; halved when memory runs out.

    Attributes
    ----------
    dim : int
        Width d of its vectors.
    kind : str
        How it really runs.
    """

    def __init__(
        self, backbone: Backbone, device: str, precision: str, kind: str, batch_size: int
    ) -> None:
        self._backbone = backbone
        self._device = device
        self._on_gpu = device != "cpu"
        self._precision = precision
        self._batch_size = batch_size
        self.kind = kind
        try:
            self._forward, self.dim = self._prepare()
        except FeatcacheError:
            raise
        except Exception as error:
            # Compilers fail in ways of their own; what runs operation by operation always serves.
            if kind == "eager" or precision == INT8:
                raise self._cannot_run(error) from None
            log.warning("%s: --engine %s failed (%s); running eager", backbone.name, kind,
                        first_line(error))  # fmt: skip
            self.kind = "eager"
            try:
                self._forward, self.dim = self._prepare()
            except (RuntimeError, ValueError, AssertionError, MemoryError) as again:
                raise self._cannot_run(again) from None

    def run(self, pixels: Pixels | Decoded) -> Vectors:
        """Embed images.

        Parameters
        ----------
        pixels : uint8 array of shape (n, 3, crop, crop), or Decoded
            Those that are not cut yet are cut on the device.

        Returns
        -------
        float32 array of shape (n, dim)
        """
        return self.start(pixels)()

    def start(
        self, pixels: Pixels | Decoded, preprocess: Preprocess | None = None
    ) -> Callable[[], Vectors]:
        """Begin to embed images; call what it returns for the vectors, as `run` gives them.

        A GPU computes in the meantime; the processor has done it already. Images that are not cut
        yet are cut as `preprocess` says, which may have another view than the network's own.
        """
        with torch.inference_mode(), _exact(self._on_gpu):
            if isinstance(pixels, Decoded):
                how = preprocess or self._backbone.preprocess
                images = pixels.cut(how, self._upload, self._device)
            else:
                images = torch.from_numpy(pixels)  # (n, 3, h, w)
            parts = []
            while len(images):
                size = self._batch_size
                try:
                    parts.append(self._fetch(self._batch(images[:size]), min(size, len(images))))
                except (RuntimeError, MemoryError) as error:
                    if not no_memory(error) or size == 1:
                        raise
                    self._halve()
                    continue
                images = images[size:]
        return lambda: np.concatenate([part() for part in parts])

    def _batch(self, images: torch.Tensor) -> torch.Tensor:
        """One forward pass of exactly the batch size, short batches filled up; (b, d)."""
        count, *shape = images.shape
        if count < self._batch_size or images.device.type == "cpu":
            batch = torch.empty(
                (self._batch_size, *shape),
                dtype=torch.uint8,
                device=images.device,
                pin_memory=self._on_gpu and images.device.type == "cpu",
                memory_format=torch.channels_last,
            )  # (b, 3, h, w)
            batch[:count] = images
            batch[count:] = 0
        else:
            batch = images
        vectors = self._forward(self._upload(batch))  # (b, d)
        if vectors.ndim != 2:
            name = self._backbone.name
            raise FeatcacheError(
                f"{name} gives an array of {vectors.ndim} dimensions, not 2",
                f"Say how tokens are pooled, as {name}:pool=cls+mean.",
            )
        return vectors

    def _upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device; a GPU copies while it computes what was given to it before."""
        if not self._on_gpu or tensor.device.type != "cpu":
            return tensor
        stream, computing = _copy_stream(self._device), torch.cuda.current_stream(self._device)
        with torch.cuda.stream(stream):
            there = tensor.to(self._device, non_blocking=True)
        computing.wait_stream(stream)
        there.record_stream(computing)  # its memory is free when the computing is done with it
        return there

    def _fetch(self, vectors: torch.Tensor, count: int) -> Callable[[], Vectors]:
        """The first `count` vectors (count, d), on their way from the device; call to wait."""
        if not self._on_gpu:
            return vectors[:count].numpy
        here = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)  # (b, d)
        here.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))

        def wait() -> Vectors:
            done.synchronize()  # not with what the device was given later
            return here[:count].numpy()

        return wait

    def _prepare(self) -> tuple[Forward, int]:
        """Build the network anew, and try it on one black image."""
        side = self._backbone.preprocess.crop
        with torch.no_grad():
            self._forward = self._built = self._build()
            dim = int(self.run(np.zeros((1, 3, side, side), np.uint8)).shape[1])
        if self._on_gpu and self.kind == "eager":
            self._forward = replayed(self._forward, (self._batch_size, 3, side, side), self._device)
        return self._forward, dim

    def _build(self) -> Forward:
        if self._precision == INT8:
            return quantised(self._backbone, self._batch_size)
        module = self._backbone.build().eval().requires_grad_(False)
        return FORWARDS[self.kind](
            module, self._backbone.preprocess, self._device, self._precision, self._batch_size
        )

    def _halve(self) -> None:
        self._batch_size = max(1, self._batch_size // 2)
        log.warning("memory ran out; going on with batches of %d", self._batch_size)
        self._forward = self._built  # a captured graph is for one batch size, and holds memory
        if self._device != "cpu":
            torch.cuda.empty_cache()
        if self.kind == "openvino":  # its graph is made for one batch size
            self._prepare()

    def _cannot_run(self, error: Exception) -> FeatcacheError:
        if no_memory(error):
            remedy = "Choose a smaller --batch-size."
        elif self._precision == "fp32":
            remedy = "Choose another --image-size: the network may need larger images."
        else:
            remedy = "Choose --precision fp32, which runs everywhere, or another --image-size."
        side = self._backbone.preprocess.crop
        return FeatcacheError(
            f"{self._backbone.name} can't run on images of {side} px in {self._precision}: "
            f"{first_line(error)}",
            remedy,
        )


@cache
def _copy_stream(device: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _exact(on_gpu: bool) -> Iterator[Any]:
    """On CUDA, keep fp32 from becoming TF32, inside convolutions and matrix products."""
    if not on_gpu:
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


def no_memory(error: Exception) -> bool:
    """Whether memory ran out, on the processor or a GPU.

    cuDNN and cuBLAS say it in words of their own if there is no room for what they work in.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
