"""featcache doctor."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click

from featcache.cli.options import cache_option, reports_option
from featcache.cli.tables import FORMATS, print_records, show_table
from featcache.errors import counted, first_line

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command()
@cache_option
@reports_option
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files. [default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@click.option("--full", is_flag=True, help="Import each library too, to see whether that works; takes some seconds.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", *FORMATS]), default="text", show_default=True, help="How to print it.")  # fmt: skip
@click.pass_context
def doctor(
    ctx: click.Context, cache: str, reports: str, weights_dir: str | None, full: bool, form: str
) -> None:
    """Look at this machine: what works, what does not, and how to mend it.

    Versions, processor, GPU, engines, precision, folders, weights, extras. Exit code 1 if
    something is broken that every stage needs; what only some of it needs is a warning. If there
    is the driver of a GPU, torch is asked whether it can use it.

    \b
    Example:
      featcache doctor
      featcache doctor --full --format json
    """

    found = examine(cache, reports, weights_dir, full)
    rows = [asdict(finding) for finding in found]
    if form == "table":
        show_table(list(rows[0]), [list(row.values()) for row in rows])
    elif form != "text":
        print_records(list(rows[0]), rows, form)
    else:
        for finding in found:
            mark = click.style(f"{finding.level:4}", fg=_COLOURS[finding.level])
            click.echo(f"{mark} {finding.name}: {finding.text}")
            for line in finding.fix.splitlines():
                click.echo(f"       → {line}")
    if any(finding.level == "FAIL" for finding in found):
        ctx.exit(1)


OK, WARN, FAIL = "OK", "WARN", "FAIL"
COMMON = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg16",
          "convnext_tiny", "vit_b_16")  # fmt: skip
_NEEDED = ("numpy", "torch", "torchvision", "scikit-learn", "h5py", "matplotlib", "jinja2",
           "safetensors", "pandas")  # fmt: skip
_WITHOUT = {  # a machine can do without these: what it then can't do
    "pydantic": "recipes can't be run",
    "skops": "fitted classifiers can't be kept, nor those of others used",
    "xgboost": "the head xgboost can't be fitted, nor models with it used",
}
_MODULES = {"scikit-learn": "sklearn"}
_EXTRAS = {
    "pyarrow": "Parquet tables",
    "openvino": "the OpenVINO engine",
    "nncf": "--precision int8",
    "timm": "timm's backbones",
    "pillow_heif": "HEIC images",
    "sklearnex": "quick SVMs",
    "onnxruntime": "checking exported ONNX files",
    "accelerate": "fine-tuning",
    "optuna": "tuning",
    "pymoo": "the selection nsga",
    "distributed": "many machines (--dask)",
    "fsspec": "images and parts at URLs",
}
_PACKAGES = {"sklearnex": "scikit-learn-intelex", "pillow_heif": "pillow-heif"}
_LITTLE_MEMORY, _LITTLE_SPACE = 2e9, 2e9  # bytes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    level : {"OK", "WARN", "FAIL"}
        FAIL: what everybody needs does not work; WARN: it works, but slower or not all of it.
    name : str
    text : str
        What was found.
    fix : str
        What to do; "" where nothing needs to be done.
    """

    level: str
    name: str
    text: str
    fix: str = ""


def examine(
    cache: str, reports: str, weights_dir: str | None = None, full: bool = False
) -> list[Finding]:
    """Look at everything, with `full` import each library; a check that breaks is a finding."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("machine", _machine),
        ("memory", _memory),
        ("libraries", lambda: _libraries(full)),
        ("devices", _devices),
        ("precision", _precision),
        ("engines", _engines),
        ("folders", lambda: _folders({"cache": cache, "reports": reports})),
        ("HDF5", lambda: _hdf5(Path(cache))),
        ("weights", lambda: _weights(weights_dir)),
        ("extras", _extras),
    ]
    return [finding for name, check in checks for finding in _safely(name, check)]


def _safely(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except ModuleNotFoundError as error:
        return [Finding(FAIL, name, f"can't be checked without {error.name}",
                        f"pip install {error.name}")]  # fmt: skip
    except Exception as error:  # noqa: BLE001  (a doctor must not die of what it looks for)
        first = first_line(error)
        fix = "Install it again: pip install --force-reinstall featcache"
        return [Finding(FAIL, name, f"can't be checked: {type(error).__name__} {first}", fix)]


def _machine() -> Iterator[Finding]:
    text = f"{platform.platform()}, Python {platform.python_version()}"
    old = sys.version_info < (3, 11)
    yield Finding(
        FAIL if old else OK, "system", text, "Install Python 3.11 or newer." if old else ""
    )
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        OK,
        "processor",
        f"{_processor()}, {usable} of {counted(os.cpu_count() or 1, 'core')} usable",
    )


def _memory() -> Iterator[Finding]:
    from featcache.store.memory_budget import free_memory

    free = free_memory()
    little = free < _LITTLE_MEMORY
    yield Finding(
        WARN if little else OK, "memory", f"{free / 1e9:.1f} GB free",
        "Close other programs, or pass a smaller --batch-size." if little else "",
    )  # fmt: skip


def _libraries(full: bool) -> Iterator[Finding]:
    good = []
    for name in ("featcache", *_NEEDED, *_WITHOUT):
        module = _MODULES.get(name, name)
        level, then = (WARN, f": {_WITHOUT[name]}") if name in _WITHOUT else (FAIL, "")
        try:
            _import(module, full)
            good.append(f"{name} {_version(name)}")
        except ModuleNotFoundError as error:
            own = error.name == module
            text = "not installed" if own else f"can't be imported without {error.name}"
            yield Finding(level, name, text + then, f"pip install {name if own else error.name}")
        except Exception as error:  # noqa: BLE001  (a broken library raises anything)
            yield Finding(level, name, f"can't be imported ({first_line(error)}){then}",
                          f"pip install --force-reinstall {name}")  # fmt: skip
    more = "" if full else "; whether they can be imported: featcache doctor --full"
    yield Finding(OK, "libraries", f"{', '.join(good)}{more}")


def _import(module: str, really: bool) -> None:
    """Import a library, or only find it: some take seconds."""
    if really:
        importlib.import_module(module)
    elif find_spec(module) is None:
        raise ModuleNotFoundError(name=module)


def has_gpu() -> bool:
    """Whether a GPU's driver is here, so that torch is worth its import."""
    return _has_nvidia() or Path("/dev/kfd").exists()  # AMD's, of small graphics units too


def _has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()


def _devices() -> Iterator[Finding]:
    if not has_gpu():
        yield Finding(OK, "GPU", "none: networks run on the processor")
        return
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            yield Finding(OK, f"cuda:{i}", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    elif _has_nvidia():
        yield Finding(WARN, "GPU", "there is an NVIDIA driver, but torch can't use the GPU",
                      "Install torch for your CUDA version: pytorch.org/get-started")  # fmt: skip
    else:
        yield Finding(OK, "GPU", "none that torch can use: networks run on the processor")


def _precision() -> Iterator[Finding]:
    if has_gpu():
        import torch

        if torch.cuda.is_available():
            good = torch.cuda.is_bf16_supported()
            yield Finding(OK, "bf16", "quick on the GPU" if good else "not on this GPU; fp16 is")
            return
    fast = [name for name, flags in (("AVX-512", "avx512_bf16"), ("AMX", "amx_bf16"))
            if flags in _cpu_flags()]  # fmt: skip
    if fast:
        yield Finding(OK, "bf16", f"quick on this processor ({' and '.join(fast)})")
    else:
        yield Finding(OK, "bf16", "no instructions for it seen on this processor: fp32 is as quick")


def _engines() -> Iterator[Finding]:
    yield Finding(OK, "engine eager", "always there")
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "c++", "clang++")
                     if c and shutil.which(c)), None)  # fmt: skip
    if compiler:
        yield Finding(OK, "engine compile", f"a C++ compiler is there: {compiler}")
    else:
        yield Finding(WARN, "engine compile", "no C++ compiler: torch.compile can't be used",
                      "Install one, for instance: apt-get install g++")  # fmt: skip
    if find_spec("openvino"):
        yield Finding(OK, "engine openvino", f"openvino {_version('openvino')}")
    else:
        yield Finding(OK, "engine openvino", "not installed (optional): pip install openvino")


def _folders(folders: dict[str, str]) -> Iterator[Finding]:
    for name, folder in folders.items():
        path = Path(folder)
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                FAIL, f"folder {name}", f"{path} can't be written ({there})",
                f"Choose another with --{name} FOLDER, or mend the permissions of {there}.",
            )  # fmt: skip
            continue
        free = shutil.disk_usage(there).free
        little = free < _LITTLE_SPACE
        fix = f"Free some space, or choose another disk with --{name} FOLDER." if little else ""
        state = "writable" if path.exists() else "is made when needed"
        yield Finding(WARN if little else OK, f"folder {name}",
                      f"{path} {state}, {free / 1e9:.1f} GB free", fix)  # fmt: skip


def _hdf5(cache: Path) -> Iterator[Finding]:
    import h5py
    from filelock import FileLock

    there = next(p for p in (cache.absolute(), *cache.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".featcache-doctor-") as folder:
            with h5py.File(Path(folder) / "try.h5", "w") as file:
                file["x"] = [1, 2, 3]
            with FileLock(Path(folder) / "try.lock", timeout=2):
                pass
    except (OSError, RuntimeError, NotImplementedError) as error:
        yield Finding(
            FAIL, "HDF5 and locks", f"files in {there} can't be written or locked: {error}",
            "On a network file system that refuses locks: export FEATCACHE_LOCK=soft "
            "HDF5_USE_FILE_LOCKING=FALSE; or keep the cache on a local disk.",
        )  # fmt: skip
        return
    text = f"HDF5 {h5py.version.hdf5_version}: written and locked in {there}"
    yield Finding(OK, "HDF5 and locks", text)


def _weights(weights_dir: str | None) -> Iterator[Finding]:
    from featcache.extraction.weight_files import locate_all
    from featcache.extraction.weights import hub_folder
    from featcache.store.weights_folder import VARIABLE, weights_folder

    own = weights_folder(weights_dir)
    if own is not None and not own.is_dir():
        yield Finding(
            FAIL, "weights folder", f"{own} is not there", f"Check --weights-dir/{VARIABLE}."
        )
    found = locate_all(weights_dir=weights_dir)
    for file in found:
        if file.problem:
            yield Finding(WARN, f"weights {file.backbone}", file.problem, "Keep one of them.")
    here = [file.backbone for file in found if file.path is not None]
    missing = [name for name in COMMON if name not in here]
    where = f"{own} and {hub_folder()}" if own else str(hub_folder())
    fix = "" if here else "They are downloaded when needed; offline: featcache weights add"
    text = f"{', '.join(here) or 'none'} ({where})"
    yield Finding(OK if here else WARN, "weights at hand", text, fix)
    if missing:
        yield Finding(OK, "weights not at hand", f"{', '.join(missing)}: downloaded when needed, "
                      "or: featcache weights add BACKBONE FILE")  # fmt: skip


def _extras() -> Iterator[Finding]:
    for module, use in _EXTRAS.items():
        package = _PACKAGES.get(module, module)
        if find_spec(module):
            yield Finding(OK, f"extra {package}", f"{_version(package)}, for {use}")
        else:
            text = f"not installed (optional, for {use}): pip install {package}"
            yield Finding(OK, f"extra {package}", text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _processor() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> frozenset[str]:
    return frozenset(next((line.split() for line in _cpuinfo() if line.startswith("flags")), []))


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
