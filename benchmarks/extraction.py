"""Extraction against what people do today, and against what the machine can do at best.

    python benchmarks/extraction.py [--images 512] [--weights-dir FOLDER] > table.md

Everything runs in one process after another on the same images, so that the ratios hold on the
machine at hand. "Peers" read files, decode, resize and run the network, as featcache does; the
"ceiling" is the bare network on batches that lie in memory. Weights are random unless a folder is
given: speed doesn't depend on them, fidelity does, and is only told for real ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from pictures import make_images
from PIL import Image
from torchvision.datasets import ImageFolder

from featcache.extraction.engine import native_bf16, open_engine
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import cosine
from featcache.extraction.registry import open_backbone
from featcache.images.sources import open_images
from featcache.store.cache import Cache

BATCH = 32


def rate(work: Callable[[], int], repeats: int = 2) -> float:
    """Images a second, the best of a few runs."""
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start))
    return best


def torchvision_loop(name: str, folder: Path) -> int:
    """ImageFolder, DataLoader, the weights' own transforms, fp32: what a tutorial shows."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    data = ImageFolder(str(folder), weights.transforms())
    network = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        for batch, _ in torch.utils.data.DataLoader(data, BATCH):
            network(batch)
    return len(data)


def timm_loop(name: str, folder: Path) -> int:
    """timm's own transform and network, without its classifier."""
    import timm

    known = {"mobilenet_v2": "mobilenetv2_100"}
    network = timm.create_model(known.get(name, name), pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_data_config(model=network)
    data = ImageFolder(str(folder), timm.data.create_transform(**config))
    with torch.no_grad():
        for batch, _ in torch.utils.data.DataLoader(data, BATCH):
            network(batch)
    return len(data)


def img2vec_loop(name: str, folder: Path) -> int:
    """img2vec_pytorch, handed lists of images."""
    from img2vec_pytorch import Img2Vec

    if name != "resnet18":
        raise KeyError(name)  # of the networks here it has ResNet18
    paths = sorted(folder.rglob("*.*"))
    with tempfile.TemporaryDirectory() as hub:  # it always loads weights: random ones, from here
        torch.hub.set_dir(hub)
        file = torchvision.models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
        Path(hub, "checkpoints").mkdir()
        state = torchvision.models.get_model(name, weights=None).state_dict()
        torch.save(state, Path(hub, "checkpoints", file))
        maker = Img2Vec(model=name)
    for start in range(0, len(paths), BATCH):
        maker.get_vec([Image.open(p).convert("RGB") for p in paths[start : start + BATCH]])
    return len(paths)


def ours(folder: Path, names: list[str], **options: object) -> tuple[int, str]:
    """`featcache extract` into an empty cache; the images done, and the line on time."""
    with tempfile.TemporaryDirectory() as cache:
        images = open_images(folder, cache=None)
        report = fill_cache(images, backbone=names, cache=cache, weights="random:0", **options)
        return report.computed, report.time_line()


def bare(name: str, precision: str, kind: str) -> Callable[[], int]:
    """The network on batches that lie in memory."""
    engine = open_engine("cpu", precision, kind)
    backbone = open_backbone(name, weights="random:0")
    network, side = engine.load(backbone), backbone.preprocess.crop
    rng = np.random.default_rng(0)
    shape = (BATCH, side, side, 3)
    batch = rng.integers(0, 256, shape, dtype=np.uint8).transpose(0, 3, 1, 2)

    def work() -> int:
        for _ in range(4):
            network.run(batch)
        return 4 * BATCH

    work()
    return work


def eager_fp32(name: str) -> Callable[[], int]:
    """torchvision as it is, on batches that lie in memory."""
    network = torchvision.models.get_model(name, weights=None).eval()
    batch = torch.randn(BATCH, 3, 224, 224)

    def work() -> int:
        with torch.no_grad():
            network(batch)
        return BATCH

    work()
    return work


def network_table(names: list[str]) -> None:
    """The bare network, each way of running it."""
    kinds = ["eager", "compile"] + (["openvino"] if importlib.util.find_spec("openvino") else [])
    print("\n### The network alone (images/s on batches in memory)\n")
    print("| network | torchvision eager fp32 |" + "".join(f" ours {k} bf16 |" for k in kinds)
          + " default over eager | default over OpenVINO |")  # fmt: skip
    print("|---" * (len(kinds) + 4) + "|")
    for name in names:
        plain = eager_fp32(name)
        runs = {kind: bare(name, "bf16", kind) for kind in kinds}
        found: dict[str, float] = dict.fromkeys(["plain", *kinds], 0.0)
        for _ in range(3):  # in turns, so that a slow moment of the machine hits all
            found["plain"] = max(found["plain"], rate(plain, 1))
            for kind, work in runs.items():
                found[kind] = max(found[kind], rate(work, 1))
        default = found["eager"]
        against = f"{default / found['openvino']:.2f}" if "openvino" in found else "–"
        shown = "".join(f" {found[kind]:.0f} |" for kind in kinds)
        print(f"| {name} | {found['plain']:.0f} |{shown} {default / found['plain']:.1f} × |"
              f" {against} |", flush=True)  # fmt: skip


def whole_table(names: list[str], count: int) -> None:
    """From files to vectors."""
    print("\n### From files to vectors (images/s)\n")
    print("| images | network | torchvision loop | timm | img2vec | featcache fp32 | featcache |"
          " over torchvision | over the network alone |")  # fmt: skip
    print("|---" * 9 + "|")
    kinds = {"32 px PNG": ((32, 32), "png"), "500 × 375 JPEG": ((500, 375), "jpg")}
    for label, (size, ending) in kinds.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "images"
            make_images(folder, count, size, ending)
            for name in names:
                peer = rate(lambda: torchvision_loop(name, folder), 1)  # noqa: B023
                others = [_other(loop, module, name, folder) for loop, module in _PEERS]
                exact = rate(lambda: ours(folder, [name], precision="fp32")[0], 1)  # noqa: B023
                fast = rate(lambda: ours(folder, [name])[0])  # noqa: B023
                alone = rate(bare(name, "bf16" if native_bf16("cpu") else "fp32", "eager"))
                print(f"| {label} | {name} | {peer:.0f} | {others[0]} | {others[1]} |"
                      f" {exact:.0f} | {fast:.0f} | {fast / peer:.1f} × | {fast / alone:.2f} |",
                      flush=True)  # fmt: skip


_PEERS = ((timm_loop, "timm"), (img2vec_loop, "img2vec_pytorch"))


def _other(loop: Callable[[str, Path], int], module: str, name: str, folder: Path) -> str:
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        return f"{rate(lambda: loop(name, folder), 1):.0f}"
    except (KeyError, OSError, RuntimeError):
        return "–"


def together_table(count: int) -> None:
    """Several backbones in one pass against one pass for each."""
    names = ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        make_images(folder, count, (1600, 1200), "jpg")
        options = {"image_size": 64}
        ours(folder, names, **options)
        start = time.perf_counter()
        for name in names:
            ours(folder, [name], **options)
        middle = time.perf_counter()
        line = ours(folder, names, **options)[1]
        end = time.perf_counter()
    separate, together = middle - start, end - middle
    print(f"\n### One decode for several backbones\n\n{', '.join(names)} at 64 px on {count} JPEGs "
          f"of 1600 × 1200: {separate:.1f} s in separate passes, {together:.1f} s in one: "
          f"{together / separate:.2f} of the time.\n\n    {line}")  # fmt: skip


def fidelity_table(names: list[str], data: str, weights_dir: str, count: int) -> None:
    """How far the fast vectors are from the exact ones, with real weights on real images."""
    print(f"\n### Fidelity (real weights, {count} images of {Path(data).name})\n")
    print("| network | precision | least cosine | 1 % | median | rows below 0.999 |")
    print("|---" * 6 + "|")
    paths = [path for path in sorted(Path(data).rglob("*.*")) if path.is_file()]
    with tempfile.TemporaryDirectory() as place:
        for i in np.linspace(0, len(paths) - 1, count).astype(int):
            link = Path(place) / "images" / paths[i].parent.name / paths[i].name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(paths[i].resolve())
        images, store = open_images(Path(place) / "images", cache=None), Cache(Path(place) / "c")
        for name in names:
            found, keys = [], []
            for precision in ("fp32", "bf16"):
                report = fill_cache(images, backbone=name, cache=store.folder,
                                    weights_dir=weights_dir, precision=precision)  # fmt: skip
                keys.append(report.outcomes[0].key.precision)
                chosen = store.choose(images.name, report.selectors)
                found.append(store.features(images, chosen).X)
            c = cosine(found[0], found[1])
            print(f"| {name} | {keys[1]} | {c.min():.5f} | {np.quantile(c, 0.01):.5f} |"
                  f" {np.median(c):.5f} | {(c < 0.999).sum()} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--networks", default="resnet18,mobilenet_v2,vgg16")
    parser.add_argument("--data", help="a folder of real images, for the fidelity table")
    parser.add_argument("--weights-dir", help="real weights, for the fidelity table")
    parser.add_argument("--tables", default="network,whole,together,fidelity")
    options = parser.parse_args()
    names, tables = options.networks.split(","), options.tables.split(",")
    print(f"# Extraction\n\n{os.cpu_count()} cores, {platform.machine()}, bf16 "
          f"{'native' if native_bf16('cpu') else 'not native'}, Python "
          f"{platform.python_version()}, torch {torch.__version__}, batch {BATCH}.")  # fmt: skip
    if "network" in tables:
        network_table(names)
    if "whole" in tables:
        whole_table([name for name in names if name != "vgg16"], options.images)
    if "together" in tables:
        together_table(max(options.images // 4, 64))
    if "fidelity" in tables and options.data and options.weights_dir:
        real = [name for name in names if name != "vgg16"]
        fidelity_table(real, options.data, options.weights_dir, options.images)


if __name__ == "__main__":
    main()
