"""Engine: how the forward pass is run: device, precision, kind and batch size.

Precision "auto" goes on in the precision that the data set's features are in already. If there are
none yet it takes the first fast one that the network bears: the canary embeds built-in images in it
and in fp32, and compares. What it has told is kept, so that it is asked once on a machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

import featcache
from featcache.errors import FeatcacheError, RecipeError, unknown
from featcache.extraction.backbone import Backbone
from featcache.extraction.canary import CANARY, Question, Verdict, canary_pixels
from featcache.extraction.conv_bn_fusion import can_fuse
from featcache.extraction.loader import cosine
from featcache.extraction.network import (
    FORWARDS,
    INT8,
    PRECISIONS,
    Network,
    has_compiler,
    has_nncf,
    has_openvino,
    no_memory,
)
from featcache.extraction.unique_images import UniqueImages
from featcache.store.cache import Cache

log = logging.getLogger("featcache")

AUTO = "auto"
_IN_CACHE = 8  # images whose feature maps a processor's cache holds
_STEP = 8  # batch sizes are multiples of it, if the data set has several batches
# So many images repay the seconds that its graph takes: some 600 of ResNet18 with AVX2 only, where
# torch.compile begins later still and is slower (reports/benchmarks/int8.md).
_WORTH_OPENVINO = 500


@dataclass(frozen=True)
class Engine:
    """Where and in what precision networks run.

    Attributes
    ----------
    device : str
        "cpu" or "cuda:0" and the like.
    precision : {"fp32", "bf16", "fp16", "int8", "auto"}
        "auto" is settled for each backbone, see `resolve_engine`.
    kind : {"eager", "compile", "openvino", "auto"}
        "auto" is settled by the number of images, see `for_images`.
    batch_size : int
        Images that are decoded, embedded and written at a time. Every forward pass has exactly
        this many: a shorter batch is filled up, so that a row's bits don't depend on how many
        images came with it.
    at_once : int or None
        If networks run eagerly, images in a forward pass, if not `batch_size`.
    """

    device: str = "cpu"
    precision: str = "fp32"
    kind: str = "eager"
    batch_size: int = 32
    at_once: int | None = None

    def for_set(self, count: int) -> Engine:
        """The same, with batches that a data set of `count` distinct images fills evenly.

        A function of the data set alone, so that a run that goes on where another was stopped has
        forward passes of the same size, which equal bits need.
        """
        size = _fill_evenly(count, self.batch_size)
        at_once = None if self.at_once is None else min(self.at_once, size)
        return replace(self, batch_size=size, at_once=at_once)

    def load(self, backbone: Backbone) -> Network:
        """Build the backbone's network on the device."""
        kind = "eager" if self.kind == AUTO else self.kind
        precision = "fp32" if self.precision == AUTO else self.precision
        size = self.at_once if kind == "eager" and self.at_once else self.batch_size
        if not computes_in(self.device, precision):
            log.warning(
                "%s: this processor has no arithmetic in %s; it is emulated, several times slower "
                "than --precision fp32",
                backbone.name, precision,
            )  # fmt: skip
        return Network(backbone, self.device, precision, kind, size)

    def for_images(self, count: int, begun: str | None = None) -> str:
        """The kind to take for this many images; `begun` is what made the rows before them.

        In bf16 the fused eager path comes close to every compiler, starts at once, and keeps more
        of the precision; in fp32 OpenVINO is the faster one (reports/benchmarks/extraction.md).
        """
        if self.kind != AUTO:
            return self.kind
        at_hand = {"eager": True, "compile": has_compiler(), "openvino": has_openvino()}
        if at_hand.get(str(begun)) and (begun != "openvino" or self.device == "cpu"):
            return str(begun)
        exact = self.device == "cpu" and self.precision == "fp32"
        return "openvino" if exact and has_openvino() and count >= _WORTH_OPENVINO else "eager"

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


def _fill_evenly(count: int, most: int) -> int:
    """A batch size of at most `most`; fewer than `_STEP` places in each batch stay empty.

    Of several batches it is a multiple of `_STEP`: so, large sets that grow a little keep theirs.
    """
    if count <= most:
        return max(1, count)
    size = -(-count // -(-count // most))
    return min(most, -(-size // _STEP) * _STEP)


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
        "auto", "fp32", "bf16", "fp16" or "int8"; "auto" never takes int8.
    engine : str, default "auto"
        "auto", "eager", "compile" or "openvino".
    batch_size : int or "auto"
        "auto" is 128 on a GPU; on the processor 32, in forward passes of 8, whose maps its cache
        holds (reports/benchmarks/extraction.md).

    Raises
    ------
    UnknownName, RecipeError
        If there is no such device, precision or engine.
    """
    place = choose_device(device)
    if precision not in (*PRECISIONS, INT8, AUTO):
        raise unknown("precision", precision, (*PRECISIONS, INT8, AUTO))
    if engine not in (*FORWARDS, AUTO):
        raise unknown("engine", engine, (*FORWARDS, AUTO))
    if precision == INT8:
        _check_int8(place, engine)
        engine = "openvino"
    if engine == "openvino" and place != "cpu":
        raise RecipeError("openvino runs on the processor", "--device cpu, or --engine compile")
    if engine == "openvino" and not has_openvino():
        raise RecipeError("openvino is not installed", 'pip install "featcache[openvino]"')
    at_once = _IN_CACHE if batch_size == AUTO and place == "cpu" else None
    if batch_size == AUTO:
        batch_size = 32 if place == "cpu" else 128
    if not isinstance(batch_size, int) or batch_size < 1:
        raise RecipeError(f"batch size {batch_size!r} is no positive number")
    if place == "cpu" and torch.cuda.is_available():
        log.warning("there is a GPU, and it is not used (--device cpu)")
    return Engine(
        device=place, precision=precision, kind=engine, batch_size=batch_size, at_once=at_once
    )


def _check_int8(device: str, engine: str) -> None:
    if device != "cpu":
        raise RecipeError("int8 runs on the processor", "--device cpu, or --precision fp16")
    if engine not in ("openvino", AUTO):
        raise RecipeError(f"int8 runs in OpenVINO, not {engine}", "--engine openvino")
    if not has_nncf():
        raise RecipeError("int8 needs OpenVINO and NNCF", 'pip install "featcache[int8]"')


@cache
def native_bf16(device: str) -> bool:
    """Whether the device computes in bf16 itself (AVX-512 BF16, AMX, NVIDIA from Ampere on)."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not computes_in(device, "bf16"):  # the processor could, but oneDNN is told not to
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.11 and later
        flags = torch.cpu.get_capabilities()
        return any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def fast_precisions(device: str) -> tuple[str, ...]:
    """The precisions in which the device is faster than in fp32, the one to be tried first first.

    Every GPU has fp16, whose vectors are nearer to fp32 than those of bf16; its range is smaller.
    """
    bf16 = ("bf16",) if native_bf16(device) else ()
    return ("fp16", *bf16) if device.startswith("cuda") else bf16


def computes_in(device: str, precision: str) -> bool:
    """Whether the device has convolutions in this precision, if only by converting on the way.

    A processor without them still gives the right vectors, by loops of torch's own. fp32 is every
    processor's, also if this torch has no oneDNN.
    """
    return device != "cpu" or precision in ("fp32", INT8) or can_fuse(PRECISIONS[precision])


def choose_device(device: str = AUTO) -> str:
    """The device that a name stands for, as "cpu" or "cuda:0".

    Raises
    ------
    UnknownName, RecipeError
        For a name that no device has, and for a device that is not there.
    """
    if device == AUTO:
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


@dataclass(frozen=True)
class ResolvedEngine:
    """How a backbone is run.

    Attributes
    ----------
    engine : Engine
        With a precision.
    canary : float or None
        The canary's least cosine; None where none was needed.
    network : Network or None
        The one that the canary has built, if it goes on with it.
    """

    engine: Engine
    canary: float | None = None
    network: Network | None = None


def resolve_engine(
    engine: Engine, backbone: Backbone, cache: Cache, unique: UniqueImages
) -> ResolvedEngine:
    """Settle the precision that "auto" means for this backbone on this device.

    Features of these images that are there already are gone on with, whatever the canary says.
    """
    begun = _begun(engine, backbone, cache, unique)
    precisions = _to_try(engine)
    if begun or not precisions:
        return ResolvedEngine(replace(engine, precision=begun or _untried(engine)))
    question, network = _question(engine, backbone, precisions), None
    verdict = question.recall(cache.folder)
    if verdict is None:
        verdict, network = _ask(engine, backbone, precisions)
        question.remember(cache.folder, verdict)
    least = verdict.cosine
    if verdict.precision != "fp32":
        ready = replace(engine, precision=verdict.precision, kind=verdict.engine)
        return ResolvedEngine(ready, least, network)
    tried = " and ".join(precisions)
    if engine.precision != AUTO:
        log.warning("%s in %s differs from fp32: cosine %.4f", backbone.name, tried, least)
        return ResolvedEngine(engine, least)
    log.warning(
        "%s in %s differs from fp32 (cosine %.4f, at least %s is wanted): computing in fp32",
        backbone.name, tried, least, CANARY,
    )  # fmt: skip
    return ResolvedEngine(replace(engine, precision="fp32"), least)


def resolve_engines(
    engine: Engine, backbones: Sequence[Backbone], cache: Cache, unique: UniqueImages
) -> list[ResolvedEngine]:
    """`resolve_engine` for each; views of one backbone share its canary and its network."""
    done: dict[str, ResolvedEngine] = {}
    found = []
    for backbone in backbones:
        plain = backbone.without_view().key().digest
        known = done.get(plain)
        begun = _begun(engine, backbone, cache, unique)
        if known is None or (begun and begun != known.engine.precision):
            known = resolve_engine(engine, backbone, cache, unique)
            done.setdefault(plain, known)
        found.append(known)
    return found


def likely_precision(engine: Engine, backbone: Backbone, cache: Cache, unique: UniqueImages) -> str:
    """What `resolve_engine` comes to, if the network bears what it was not tried in yet."""
    begun = _begun(engine, backbone, cache, unique)
    precisions = _to_try(engine)
    if begun or not precisions:
        return begun or _untried(engine)
    if engine.precision != AUTO:
        return engine.precision
    verdict = _question(engine, backbone, precisions).recall(cache.folder)
    return verdict.precision if verdict else precisions[0]


def _begun(engine: Engine, backbone: Backbone, cache: Cache, unique: UniqueImages) -> str:
    """The precision of the features that are there, "" if there are none.

    Of several that "auto" could go on with, the one with the fewest images missing.
    """
    data = unique.images.name
    allowed = ("fp32", "bf16", "fp16") if engine.precision == AUTO else (engine.precision,)
    there = [name for name in allowed if cache.has(data, backbone.key(name))]
    if len(there) < 2:
        return "".join(there)
    return min(
        there, key=lambda name: cache.missing(data, backbone.key(name), unique.digests).sum()
    )


def _to_try(engine: Engine) -> tuple[str, ...]:
    """The precisions that are held against fp32, in order."""
    if engine.precision == AUTO:
        return fast_precisions(engine.device)
    # int8 is only taken if asked for, and never as near as a canary wants.
    return () if engine.precision in ("fp32", INT8) else (engine.precision,)


def _untried(engine: Engine) -> str:
    """The precision if none has to be tried."""
    return "fp32" if engine.precision == AUTO else engine.precision


def _question(engine: Engine, backbone: Backbone, precisions: tuple[str, ...]) -> Question:
    facts = engine.describe()
    return Question(
        backbone=backbone.without_view().key().digest,
        device=facts["device"],
        torch=facts["torch"],
        featcache=featcache.__version__,
        engine="eager" if engine.kind == AUTO else engine.kind,
        precisions=precisions,
    )


def _ask(
    engine: Engine, backbone: Backbone, precisions: Sequence[str]
) -> tuple[Verdict, Network | None]:
    """Try one precision after the other on the canary's images.

    Returns
    -------
    verdict : Verdict
    network : Network or None
        One that computes as the verdict says, unless in fp32.
    """
    pixels = canary_pixels(backbone.without_view().preprocess)
    slow = replace(engine, precision="fp32", kind="eager", batch_size=len(pixels))
    exact = slow.load(backbone).run(pixels)  # (n, d)
    kind = "eager" if engine.kind == AUTO else engine.kind
    least = -1.0
    for precision in precisions:
        for one in dict.fromkeys((kind, "eager")):  # eager keeps more of the precision than others
            try:
                network = replace(engine, precision=precision, kind=one).load(backbone)
            except FeatcacheError as error:
                if engine.precision != AUTO or no_memory(error):
                    raise
                continue  # it has an operation that this precision lacks
            found = cosine(exact, network.run(pixels))  # (n,)
            least = float(np.nan_to_num(found, nan=-1.0).min())
            if least >= CANARY:
                return Verdict(precision, network.kind, least), network
    return Verdict("fp32", kind, least), None
