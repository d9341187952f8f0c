"""Stage 1 on a GPU: from files and from memory, how exact, and killed; fine-tuning; one command.

    python benchmarks/gpu.py > gpu.md
    python benchmarks/gpu.py --device cpu --images 96 --seconds 0.2   # a trial without a card

It makes its images itself; all that is timed is a fresh process. "Plain loop" is what a good
practitioner writes: a DataLoader with a worker process for each core, the transforms of the
weights, autocast to fp16, channels last. "Once running" counts from its first batch on; by then
worker processes have decoded some images ahead, so that the last half of the images is told too.
Unless a folder of weights is named they are random, scaled so that vectors are about as large as
trained ones: others of MobileNetV2 are too small for fp16. Their vectors of all images are much
alike, so that cosines say little: those that matter take `--weights-dir`.
Fine-tuning, all weights free, is set against an eager loop by hand: images of 32 px on the device,
random crops and mirrors, autocast to bf16, channels last, fused AdamW. Ours changes colours too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Timer
from typing import Any, Self, TypeVar

import numpy as np
from pictures import make_image, make_images
from PIL import Image

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1
NETWORKS = "resnet18,mobilenet_v2,vgg16,resnet50,vit_b_16"
KINDS = {"png": ("32 px PNG", (32, 32), 1.0), "jpg": ("500 × 375 JPEG", (500, 375), 0.6)}
PRECISIONS = ("fp32", "fp16", "bf16")
DATA = "pictures"
LIMIT = 120.0  # seconds that a process may take
TARGETS = (
    ("ResNet18, 32 px PNG, once running: images/s", "png running", ">=", 20_000),
    ("the same over the plain loop", "png running / plain", ">=", 3),
    ("ResNet18, 500 × 375 JPEG, once running, over the plain loop", "jpg running / plain",
     ">=", 1.3),
    ("the same, the whole run", "jpg whole / plain", ">=", 1.3),
    ("32 px PNG: s of ours before the first image", "png first", "<=", 2),
    ("500 × 375 JPEG: s of ours before the first image", "jpg first", "<=", 2),
    *((f"{name}, pixels in memory, over the bare eager network", f"{name} / eager", ">=", 0.8)
      for name in NETWORKS.split(",")),
    ("given weights, fp32, resized on the device: least cosine", "least cosine", ">=", 0.9999),
    ("rows that differ after kills", "differing", "<=", 0),
    ("ResNet18, fine-tuned, over an eager loop", "resnet18 tuned / eager", ">=", 1.0),
    ("MobileNetV2, the same", "mobilenet_v2 tuned / eager", ">=", 1.5),
    ("validation of a tenth of the images: most of an epoch's time", "validation", "<=", 0.05),
)  # fmt: skip


# What runs in a process of its own: each says what it found in lines of JSON.


def say(**facts: Any) -> None:
    """Tell the parent."""
    print(json.dumps(facts), flush=True)


class Laps:
    """When batches were done, in a process that began at `began` and has imported all by now."""

    def __init__(self, began: float) -> None:
        self._began, self._ready = began, time.time()
        self._laps: list[tuple[float, int]] = []

    def add(self, done: int) -> None:
        """So many images are done."""
        self._laps.append((time.time(), done))

    def facts(self) -> dict[str, float | None]:
        """Seconds before the first batch, and images a second after it; now all is done."""
        if not self._laps:
            return {}
        end, total = time.time(), self._laps[-1][1]
        half = next(lap for lap in self._laps if 2 * lap[1] >= total)

        def rate(at: float, done: int) -> float | None:
            return (total - done) / (end - at) if done < total else None

        return {
            "imports": self._ready - self._began, "first": self._laps[0][0] - self._ready,
            "running": rate(*self._laps[0]), "half": rate(*half),
        }  # fmt: skip


def machine(device: str) -> None:
    """What it all runs on."""
    import torch
    import torchvision

    card = ""
    if device != "cpu" and torch.cuda.is_available():
        card = torch.cuda.get_device_name(device)
    say(card=card, torch=torch.__version__, torchvision=torchvision.__version__)


def weights(folder: str, networks: list[str]) -> None:
    """Write weight files: random, each layer scaled so that its maps don't fade away."""
    import torch
    from torchvision import models

    def scale(norm: Any, maps: tuple[torch.Tensor]) -> None:
        norm.running_var.fill_(maps[0].square().mean())

    torch.manual_seed(0)
    pixels = torch.nn.functional.interpolate(torch.randn(16, 3, 9, 9), size=(224, 224))
    for name in networks:
        module = models.get_model(name, weights=None).eval()
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.register_forward_pre_hook(scale)
        with torch.no_grad():
            module(pixels)
        torch.save(module.state_dict(), Path(folder) / f"{name}.pth")


def extraction(began: float, data: str, cache: str, networks: list[str], **options: str) -> None:
    """Fill a cache, telling of each batch."""
    import torchvision  # noqa: F401  the networks' own

    from featcache.extraction.extract import ExtractionContext, embed_here, fill_cache
    from featcache.images.sources import open_images

    laps, found = Laps(began), {}
    images = open_images(data, name=DATA, cache=cache)

    def progress(done: int, of: int) -> None:
        laps.add(done)
        say(kept=len(images) - of, done=len(images) - of + done)

    def embed(context: ExtractionContext) -> None:
        embed_here(context)
        found.update(laps.facts())  # all is computed and written

    report = fill_cache(
        images, backbone=networks, cache=cache, progress=progress, embed=embed, **options
    )
    say(**found, precision=" + ".join(done.key.precision for done in report.outcomes))


@dataclass(frozen=True)
class Files:
    """A data set of torch.utils.data: each image transformed for each network."""

    paths: Sequence[Path]
    transforms: Sequence[Callable[[Image.Image], Any]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[Any]:
        image = Image.open(self.paths[i]).convert("RGB")
        return [transform(image) for transform in self.transforms]


def plain(began: float, data: str, networks: list[str], device: str) -> None:
    """The loop that anybody would write."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import models

    laps, gpu = Laps(began), device != "cpu"
    transforms = [models.get_model_weights(name).DEFAULT.transforms() for name in networks]
    modules = []
    for name in networks:
        module = models.get_model(name, weights=None).eval()
        setattr(module, [*module.named_children()][-1][0], torch.nn.Identity())  # its classifier
        modules.append(module.to(device, memory_format=torch.channels_last))
    paths = sorted(Path(data).rglob("*.*"))
    size = min(256, max(1, len(paths) // 4))
    loader = DataLoader(Files(paths, transforms), size, num_workers=CORES, pin_memory=gpu)
    vectors: list[list[torch.Tensor]] = [[] for _ in modules]
    done = 0
    with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.float16, enabled=gpu):
        for batch in loader:
            for module, pixels, found in zip(modules, batch, vectors, strict=True):
                pixels = pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
                found.append(module(pixels).float().cpu())  # (b, d)
            done += len(batch[0])
            laps.add(done)
    say(**laps.facts(), precision="fp16" if gpu else "fp32")


def memory(networks: list[str], device: str, seconds: float) -> None:
    """Images a second of networks on pixels that lie in memory, and on the device."""
    for name in networks:
        try:
            say(network=name, **_speeds(name, device, seconds))
        except Exception as error:
            say(network=name, failed=_first_line(error))


def _speeds(name: str, device: str, seconds: float) -> dict[str, float | None]:
    import torch

    from featcache.extraction.engine import open_engine
    from featcache.extraction.registry import open_backbone

    gpu = device != "cpu"
    engine = open_engine(device, "fp16" if gpu else "fp32", batch_size="auto" if gpu else 4)
    backbone = open_backbone(name, weights="random:0")
    size, side = engine.batch_size, backbone.preprocess.crop
    eager, captured = _bare(backbone.build(), (size, 3, side, side), device, seconds)
    if gpu:
        torch.cuda.empty_cache()
    start = time.perf_counter()
    network = engine.load(backbone)
    built = time.perf_counter() - start
    lying = torch.randint(256, (size, side, side, 3), dtype=torch.uint8)
    pixels = (lying.pin_memory() if gpu else lying).permute(0, 3, 1, 2).numpy()  # (b, 3, h, w)
    waiting: list[Callable[[], Any]] = []

    def one_ahead() -> None:
        waiting.append(network.start(pixels))
        if len(waiting) > 1:
            waiting.pop(0)()

    ours = _rate(one_ahead, size, seconds, gpu, together=1)
    return {"eager": eager, "captured": captured, "ours": ours, "built": built}


def _bare(
    module: Any, shape: tuple[int, ...], device: str, seconds: float
) -> tuple[float, float | None]:
    """Images a second on a batch that lies on the device: eager, and on a GPU as a CUDA graph."""
    import torch

    gpu = device != "cpu"
    module = module.eval().requires_grad_(False)
    with contextlib.suppress(Exception):  # not every network can be traced
        from torch.fx.experimental.optimization import fuse

        module = fuse(module)
    dtype = torch.float16 if gpu else torch.float32
    module.to(device, dtype, memory_format=torch.channels_last)
    batch = torch.randn(shape, dtype=dtype, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)  # (b, 3, h, w)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        eager = _rate(lambda: module(batch), len(batch), seconds, gpu)
        if gpu:
            with contextlib.suppress(RuntimeError):  # not every network can be captured
                return eager, _rate(_captured(module, batch), len(batch), seconds, gpu)
    return eager, None


def _rate(
    work: Callable[[], object], count: int, seconds: float, gpu: bool, together: int = 8
) -> float:
    """Images a second of work on `count`; a GPU is waited for after several in one go."""
    from torch.cuda import synchronize

    def passes() -> int:
        for _ in range(together if gpu else 1):
            work()
        if gpu and together > 1:
            synchronize()
        return together if gpu else 1

    passes()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += passes()
    if gpu:
        synchronize()
    return done * count / (time.perf_counter() - start)


def _captured(module: Callable[[Any], Any], batch: Any) -> Callable[[], object]:
    """The module's work on this batch as a CUDA graph."""
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            module(batch)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(batch)
    return graph.replay


def fidelity(data: str, caches: str, networks: list[str], device: str, weights_dir: str) -> None:
    """Cosines between vectors made on the device and exact ones: fp32, Pillow, the processor."""
    from featcache.extraction.extract import ExtractionContext, embed_here, fill_cache
    from featcache.images.sources import open_images
    from featcache.store.cache import Cache

    def on_device(context: ExtractionContext) -> None:
        """Resized there also where the processor stands in for a card."""
        if device == "cpu":
            loading = replace(context.loading, processes=True, on_device=True)
            context = replace(context, loading=loading)
        embed_here(context)

    images = open_images(data, name=DATA, cache=caches)

    def vectors(name: str, cache: str, **how: Any) -> np.ndarray:
        store = Cache(Path(caches) / cache)
        how = {**how, "weights_dir": weights_dir}
        report = fill_cache(images, backbone=name, cache=store.folder, **how)
        found = store.features(images, store.choose(images.name, report.selectors))
        if len(found.X) != len(images):
            raise RuntimeError(f"{len(images) - len(found.X)} images have no vector")
        return found.X.astype(np.float64)  # (n, d)

    kinds = np.array([id_.split("/")[0] for id_ in images.ids])
    for name in networks:
        exact = vectors(name, "exact", device="cpu", precision="fp32", engine="eager")
        others = float(np.median(_cosine(exact, np.roll(exact, 1, axis=0))))
        for precision in PRECISIONS:
            try:
                fast = vectors(name, precision, device=device, precision=precision, embed=on_device)
                found = _cosine(exact, fast)
                by_kind = {kind: float(found[kinds == kind].min()) for kind in np.unique(kinds)}
                say(network=name, precision=precision, least=float(found.min()),
                    median=float(np.median(found)), others=others, **by_kind)  # fmt: skip
            except Exception as error:
                say(network=name, precision=precision, failed=_first_line(error))


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between the rows of two arrays (n, d), shape (n,)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / lengths


def difference(one: str, other: str) -> None:
    """How many rows of the features in two caches have other bits."""
    from featcache.store.cache import Cache

    found = []
    for folder in (one, other):
        store = Cache(folder)
        images = store.images(DATA)
        found.append(store.features(images, store.choose(images.name, [])))
    a, b = found
    if not (np.array_equal(a.ids, b.ids) and a.keys == b.keys):
        raise RuntimeError("the two caches hold other images, or other keys")
    say(rows=len(a.X), differing=int((a.X.view(np.uint8) != b.X.view(np.uint8)).any(axis=1).sum()))


def tuning(networks: list[str], device: str, images: int, seconds: float) -> None:
    """Images a second of fine-tuning, ours and by hand, and what validation takes of an epoch."""
    # A trial is to be quick.
    how = {"side": 224, "batch": 64} if device != "cpu" else {"side": 32, "batch": 8}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    for name in networks:
        try:
            eager = _tuned_by_hand(name, pixels, device, seconds=seconds, **how)
            say(network=name, eager=eager, **_tuned(name, pixels, device, **how))
        except Exception as error:
            say(network=name, failed=_first_line(error))


def _tuned_by_hand(
    name: str, pixels: np.ndarray, device: str, side: int, batch: int, seconds: float
) -> float:
    import torch
    from torch.nn import functional
    from torchvision import models

    gpu = device != "cpu"
    module = models.get_model(name, weights=None, num_classes=10)
    module.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-4, weight_decay=1e-4, fused=gpu)
    X = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()  # (n, 3, h, w)
    y = torch.randint(10, (len(X),), device=device)
    at = 0

    def step() -> None:
        nonlocal at
        at = at + batch if at + 2 * batch <= len(X) else 0
        images, target = X[at : at + batch], y[at : at + batch]
        share = torch.empty(len(images), device=device).uniform_(0.7, 1)
        mirror = torch.where(torch.rand(len(images), device=device) < 0.5, -1.0, 1.0)
        theta = torch.zeros(len(images), 2, 3, device=device)
        theta[:, 0, 0], theta[:, 1, 1] = share * mirror, share
        theta[:, :, 2] = (2 * torch.rand(len(images), 2, device=device) - 1) * (1 - share[:, None])
        grid = functional.affine_grid(theta, (len(images), 3, side, side), align_corners=False)
        x = functional.grid_sample(
            images.float().div(255), grid, padding_mode="border", align_corners=False
        ).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=gpu):
            loss = functional.cross_entropy(module(x), target, label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        return _rate(step, min(batch, len(X)), seconds, gpu)


def _tuned(
    name: str, pixels: np.ndarray, device: str, side: int, batch: int
) -> dict[str, float | bool]:
    import torch

    from featcache.extraction.registry import open_backbone
    from featcache.finetuning.data import Pixels
    from featcache.finetuning.hardware import open_accelerator
    from featcache.finetuning.network import build, make_head
    from featcache.finetuning.options import Options
    from featcache.finetuning.trainer import Trainer
    from featcache.images.manifest import from_arrays

    accelerator = open_accelerator(device, "fp32" if device == "cpu" else "bf16")
    backbone = open_backbone(name, weights="random:0", image_size=side)
    labels = [str(i % 10) for i in range(len(pixels))]
    images = from_arrays(DATA, list(pixels), ids=[f"{i:06d}" for i in range(len(pixels))],
                         labels=labels)  # fmt: skip
    ready = Pixels(images, [backbone.preprocess], accelerator.device)
    network, _ = build([backbone], make_head("concat", "mlp", {}, 0), 10)
    rows = np.arange(len(pixels))
    trainer = Trainer(
        network, ready, torch.from_numpy(rows % 10), rows[len(rows) // 10 :],
        rows[: len(rows) // 10], 10, Options(epochs=3, freeze_epochs=0, batch_size=batch),
        accelerator, seed=0,
    )  # fmt: skip
    trained: list[float] = []
    validated: list[float] = []
    graph = False

    def epoch() -> None:
        nonlocal graph
        run_epoch()
        graph = trainer._stepper._replay is not None

    run_epoch = trainer._epoch
    trainer._epoch = _timed(epoch, trained)  # type: ignore[method-assign]
    trainer._validate = _timed(trainer._validate, validated)  # type: ignore[method-assign]
    trainer.run()
    return {
        "ours": len(trainer.train_rows) / trained[-1], "graph": graph, "began": trained[0],
        "validation": validated[-1] / (trained[-1] + validated[-1]),
    }  # fmt: skip


def _timed(work: Callable[..., T], seconds: list[float]) -> Callable[..., T]:
    def timed(*args: Any) -> T:
        start = time.perf_counter()
        done = work(*args)
        seconds.append(time.perf_counter() - start)
        return done

    return timed


PROCESSES = {
    work.__name__: work
    for work in (machine, weights, extraction, plain, memory, fidelity, difference, tuning)
}


# What starts them, and writes the table.


class Failed(RuntimeError):
    """A process came to no good end."""


class Child:
    """A fresh process in a group of its own, and the lines of JSON that it says.

    Parameters
    ----------
    *command : str
        Arguments of Python.
    limit : float
        Seconds after which it is killed, and all that it has started.
    """

    def __init__(self, *command: str, limit: float = LIMIT) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed at exit
        self._process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=self._errors, text=True,
            start_new_session=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        self._late = False
        self._limit = limit
        self._timer = Timer(limit, self._stop)

    @classmethod
    def of(cls, work: Callable[..., None], **options: Any) -> Child:
        """One that does one of `PROCESSES`."""
        if "began" in work.__annotations__:
            options["began"] = time.time()
        return cls(__file__, "--process", work.__name__, json.dumps(options))

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends; raises Failed if it failed."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        code = self._process.wait()
        if self._late:
            raise Failed(f"took longer than {self._limit:.0f} s")
        if code:
            self._errors.seek(0)
            said = [line for line in self._errors.read().splitlines() if line.strip()]
            raise Failed(said[-1].strip() if said else f"ended with {code}")

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it and what it has started, as when the machine is switched off."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def _stop(self) -> None:
        self._late = True
        self.kill()


def run(work: Callable[..., None], **options: Any) -> dict[str, Any]:
    """Do one of `PROCESSES`; the last that it says, and the seconds it took."""
    start, last = time.perf_counter(), {}
    with Child.of(work, **options) as child:
        for line in child:
            last = line
    return {**last, "seconds": time.perf_counter() - start}


def attempt(what: str, work: Callable[..., T], *args: Any, **options: Any) -> T | None:
    """What comes of the work; if it fails, a row that says so, and None."""
    try:
        return work(*args, **options)
    except Exception as error:
        print(f"| {what} | failed: {_first_line(error)} |")
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    text = lines[0] if isinstance(error, Failed) else f"{type(error).__name__}: {lines[0]}"
    return text.replace("|", "/")[:300]


def heading(title: str, *columns: str) -> None:
    """The head of a table."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def row(*cells: object) -> None:
    """A row of it; numbers with three digits or so, None as a dash."""
    print(f"| {' | '.join(map(_cell, cells))} |")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


@dataclass
class Table:
    """The sections of the table, and what they have found for the targets."""

    options: argparse.Namespace
    folder: Path
    found: dict[str, float] = field(default_factory=dict)

    @property
    def networks(self) -> list[str]:
        return list(self.options.networks.split(","))

    @property
    def two(self) -> list[str]:
        """Of several networks the first two."""
        return self.networks[:2]

    @cached_property
    def weights(self) -> str:
        """The folder of weight files."""
        if self.options.weights_dir:
            return str(self.options.weights_dir.resolve())
        folder = tempfile.mkdtemp(prefix="weights", dir=self.folder)
        run(weights, folder=folder, networks=self.two)
        return folder

    @property
    def how(self) -> dict[str, str]:
        """Options of `featcache extract`."""
        # "auto" is what a user gets; a trial is to be quick.
        precision = "fp32" if self.options.device == "cpu" else "auto"
        return {
            "weights_dir": self.weights, "device": self.options.device, "precision": precision,
        }  # fmt: skip

    def cache(self) -> str:
        """An empty folder."""
        return tempfile.mkdtemp(prefix="cache", dir=self.folder)

    def pictures(self, kind: str) -> tuple[str, Path, int]:
        """What images of a kind are called, their folder and how many they are."""
        name, size, part = KINDS[kind]
        count = max(1, int(self.options.images * part))
        folder = (self.options.folder or self.folder) / f"{kind}{count}"
        if len([*folder.rglob(f"*.{kind}")]) != count:
            make_images(folder, count, size, kind)
        return name, folder, count

    def files(self) -> None:
        """From files to vectors, one network."""
        self._head("From files to vectors")
        for kind in KINDS:
            attempt(KINDS[kind][0], self._from_files, kind, self.networks[:1], kind)

    def together(self) -> None:
        """Two networks in one pass."""
        self._head("Two networks in one pass")
        attempt("32 px PNG", self._from_files, "png", self.two, "together")

    def _head(self, title: str) -> None:
        heading(
            title, "images, networks", "by", "precision", "images/s, the whole run", "once running",
            "last half", "imports, s", "from there to the first image, s",
        )  # fmt: skip

    def _from_files(self, kind: str, networks: list[str], key: str) -> None:
        name, folder, count = self.pictures(kind)
        what = f"{count:,} × {name}, {' + '.join(networks)}"
        data = {"data": str(folder), "networks": networks}
        whole = attempt(f"{what} | featcache extract", self._command, folder, networks)
        ours = attempt(
            f"{what} | featcache", run, extraction, cache=self.cache(), **data, **self.how
        )
        loop = attempt(f"{what} | plain loop", run, plain, **data, device=self.options.device)
        rates: list[dict[str, float | None]] = []
        for by, seconds, facts in (
            ("featcache", whole, ours or {}),
            (f"plain loop, {CORES} workers", (loop or {}).get("seconds"), loop or {}),
        ):
            rates.append({"whole": count / seconds if seconds else None,
                          "running": facts.get("running"), "half": facts.get("half")})  # fmt: skip
            row(what, by, facts.get("precision"), *rates[-1].values(), facts.get("imports"),
                facts.get("first"))  # fmt: skip
        over = {part: _ratio(rates[0][part], rates[1][part]) for part in rates[0]}
        row("", "featcache / plain loop", "", *over.values(), "", "")
        self._note(f"{key} running", rates[0]["running"])
        self._note(f"{key} first", (ours or {}).get("first"))
        for part, value in over.items():
            self._note(f"{key} {part} / plain", value)

    def _command(self, folder: Path, networks: list[str]) -> float:
        """Seconds of `featcache extract`."""
        start = time.perf_counter()
        with Child(
            "-m", "featcache", "extract", "--data", str(folder), "--backbone", ",".join(networks),
            "--cache", self.cache(),
            *(f"--{name.replace('_', '-')}={value}" for name, value in self.how.items()),
        ) as child:  # fmt: skip
            list(child)
        return time.perf_counter() - start

    def memory(self) -> None:
        """Pixels in memory against the bare network."""
        heading(
            "Pixels in memory, images/s", "network", "bare, eager, its batch on the device",
            "the same as a CUDA graph", "featcache, from memory", "/ eager", "/ graph",
            "its network built in, s",
        )  # fmt: skip
        how = {"device": self.options.device, "seconds": self.options.seconds}
        with Child.of(memory, networks=self.networks, **how) as child:
            for line in child:
                name = line["network"]
                if "failed" in line:
                    row(name, f"failed: {line['failed']}")
                    continue
                over = _ratio(line["ours"], line["eager"])
                row(name, line["eager"], line["captured"], line["ours"], over,
                    _ratio(line["ours"], line["captured"]), line["built"])  # fmt: skip
                self._note(f"{name} / eager", over)

    def fidelity(self) -> None:
        """Cosines to exact vectors."""
        folder = self.folder / "fidelity"
        count = max(2, min(200, self.options.images // 4) // 3)
        for name, size, _ in KINDS.values():
            ending = "png" if "PNG" in name else "jpg"
            make_images(folder / name, count, size, ending)
        rng = np.random.default_rng(0)
        for i, size in enumerate(rng.integers(40, 700, (count, 2)).tolist()):
            ending = ("png", "jpg")[i % 2]
            make_image((folder / "mixed sizes" / f"{i:06d}.{ending}", 1_000_000 + i, tuple(size)))
        kinds = [*(name for name, *_ in KINDS.values()), "mixed sizes"]
        heading(
            f"Cosines of {count * len(kinds)} images to fp32, Pillow, the processor; "
            f"{'given' if self.options.weights_dir else 'random'} weights",
            "network", "precision", "least", "median", *(f"least, {kind}" for kind in kinds),
            "two different images, median",
        )  # fmt: skip
        with Child.of(
            fidelity, data=str(folder), caches=self.cache(), networks=self.two,
            device=self.options.device, weights_dir=self.weights,
        ) as child:  # fmt: skip
            for line in child:
                start = line["network"], line["precision"]
                if "failed" in line:
                    row(*start, f"failed: {line['failed']}")
                    continue
                names = ["least", "median", *kinds, "others"]
                row(*start, *(f"{line[name]:.6f}" for name in names))
                if self.options.weights_dir and line["precision"] == "fp32":
                    self.found["least cosine"] = min(
                        line["least"], self.found.get("least cosine", 1.0)
                    )

    def kill(self) -> None:
        """Killed three times and resumed."""
        heading(
            "Killed three times and resumed", "rows", "kills",
            "rows that were there when it was last resumed",
            "rows that differ from an uninterrupted run",
        )  # fmt: skip
        _, folder, count = self.pictures("png")
        whole, other, kills, kept = self.cache(), self.cache(), 0, None
        how = {"data": str(folder), "networks": self.networks[:1], **self.how}
        run(extraction, cache=whole, **how)
        for part in (0.25, 0.5, 0.75):
            with Child.of(extraction, cache=other, **how) as child:
                for line in child:
                    if "done" in line and line["done"] >= part * count:
                        kills += child.alive
                        child.kill()
                        break
        with Child.of(extraction, cache=other, **how) as child:
            for line in child:
                kept = line.get("kept", kept)
        same = run(difference, one=whole, other=other)
        row(same["rows"], kills, kept, same["differing"])
        self._note("differing", same["differing"])

    def finetuning(self) -> None:
        """Fine-tuning against an eager loop by hand."""
        heading(
            "Fine-tuning, images/s", "network", "an eager loop by hand", "featcache",
            "as a CUDA graph", "/ eager", "validation's part of an epoch",
            "its first epoch, s",
        )  # fmt: skip
        count = max(40, 2 * self.options.images)
        with Child.of(
            tuning, networks=self.two, device=self.options.device, images=count,
            seconds=2 * self.options.seconds,
        ) as child:  # fmt: skip
            for line in child:
                name = line["network"]
                if "failed" in line:
                    row(name, f"failed: {line['failed']}")
                    continue
                over, part = _ratio(line["ours"], line["eager"]), line["validation"]
                row(name, line["eager"], line["ours"], "yes" if line["graph"] else "no", over,
                    f"{part:.1%}", line["began"])  # fmt: skip
                self._note(f"{name} tuned / eager", over)
                self._note("validation", max(part, self.found.get("validation", 0.0)))

    def targets(self) -> None:
        """What was to be reached, and what was."""
        heading("Targets", "target", "reached", "aim", "")
        for what, key, relation, aim in TARGETS:
            value = self.found.get(key)
            met = value is not None and (value >= aim if relation == ">=" else value <= aim)
            verdict = "not measured" if value is None else "met" if met else "missed"
            shown = f"{value:.6f}" if value is not None and "cosine" in key else value
            row(what, shown, f"{'≥' if relation == '>=' else '≤'} {aim:,}", verdict)

    def _note(self, key: str, value: float | None) -> None:
        if value is not None:
            self.found[key] = value


SECTIONS = ("files", "together", "memory", "fidelity", "kill", "finetuning")


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a trial")
    parser.add_argument("--images", type=int, default=10_000, help="of 32 px; JPEG 0.6 of them")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure from memory")
    parser.add_argument("--networks", help=f"several by commas: {NETWORKS}, in a trial two")
    parser.add_argument("--weights-dir", type=Path, help="real ones, of the first two networks")
    parser.add_argument("--folder", type=Path, help="keep the images here, for the next time")
    parser.add_argument("--only", default=",".join(SECTIONS), help="several by commas")
    options = parser.parse_args()
    trial = options.device == "cpu"
    options.networks = options.networks or ("resnet18,mobilenet_v2" if trial else NETWORKS)
    asked = options.only.split(",")
    if unknown := set(asked) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: ends what it has started
    start, here = time.perf_counter(), run(machine, device=options.device)
    if not (trial or here["card"]):
        parser.error("no CUDA device; a trial: --device cpu --images 96 --seconds 0.2")
    print("# Stage 1 and fine-tuning on a GPU\n")
    print(f"{here['card'] or platform.machine()}, {CORES} cores, Python "
          f"{platform.python_version()}, torch {here['torch']}, torchvision "
          f"{here['torchvision']}.")  # fmt: skip
    if trial:
        print("\n**A trial on the processor: its figures say nothing about a GPU.**")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        table = Table(options, Path(folder))
        for name in SECTIONS:
            if name in asked:
                attempt(name, getattr(table, name))
        table.targets()
    print(f"\nMade in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        PROCESSES[sys.argv[2]](**json.loads(sys.argv[3]))
    else:
        main()
