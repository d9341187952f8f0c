"""Export: a bundle to take elsewhere, or a model as one ONNX file, checked against ours."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.atomic import making_folder, replacing
from featcache.errors import DataError, FeatcacheError, first_line
from featcache.extraction.engine import open_engine
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.extraction.silence import silence
from featcache.images.manifest import ORIGIN_JSON
from featcache.prediction.bundle_reader import find_model, model_facts, whole_network
from featcache.prediction.model import Tuned, classifier_of, open_backbones_of
from featcache.prediction.onnx_graph import Graph, TunedGraph, as_module, described_inputs
from featcache.reporting.bundle import write_facts
from featcache.reporting.places import split_places
from featcache.reporting.run_reader import find_run
from featcache.reporting.schema import read_json, read_run
from featcache.store.weights_folder import file_stem

log = logging.getLogger("featcache")


def copy_model(
    run: str | Path,
    folder: str | Path,
    *,
    standalone: bool = False,
    reports: str | Path = "reports",
    weights_dir: str | Path | None = None,
) -> Path:
    """Copy a run's model into a folder of its own, all or nothing.

    Parameters
    ----------
    run : str or Path
        See `load_model`.
    folder : str or Path
        Must not be there yet.
    standalone : bool, default False
        Put the backbones' weights in as safetensors, so that nothing else is needed. Without them
        `predict` looks for weights with the recorded sha256.
    reports : str or Path, default "reports"
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the folder is there, or the run has no model.
    WeightsError
        If weights are to be put in that can't be found.
    """
    source, target = find_model(run, reports), Path(folder).expanduser()
    facts = model_facts(source)
    refuse_existing(target)
    with making_folder(target) as temporary:
        temporary.mkdir(parents=True)
        for name in facts["files"]:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        if standalone and facts["kind"] == "features":
            facts["weights"] = _put_in(temporary, facts, source, weights_dir)
        write_facts(
            temporary, {k: v for k, v in facts.items() if k not in ("format", "files", "sha256")}
        )
        temporary.replace(target)
    return target


def copy_run(run: str | Path, folder: str | Path, reports: str | Path = "reports") -> Path:
    """Copy a run folder for others: all that it holds but origin.json, which names folders here.

    Parameters
    ----------
    run : str or Path
        A run folder, or its name; see `find_run`.
    folder : str or Path
        Must not be there yet.
    reports : str or Path, default "reports"

    Returns
    -------
    Path
        The folder.
    """
    source = Path(run) if Path(run).is_dir() else find_run(str(run), reports)
    target = Path(folder).expanduser()
    read_run(source)
    refuse_existing(target)
    shown, places = split_places(read_json(source / "run.json"))
    left_out = {ORIGIN_JSON}
    if places:  # of an earlier version, whose page names them too
        left_out.add("report.html")
        log.warning("report.html is left out, it names folders here: make it anew, featcache "
                    "report %s", source)  # fmt: skip
    with making_folder(target) as temporary:
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            # realpath, since resolve raises for a link to itself
            inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(source))
            if path.is_file() and inside and name not in left_out and "/." not in f"/{name}":
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary / name)
        text = json.dumps(shown, indent=1) + "\n"
        (temporary / "run.json").write_text(text, encoding="utf-8")
        temporary.replace(target)
    return target


def refuse_existing(target: Path) -> None:
    """Refuse to write over a file or folder.

    Raises
    ------
    DataError
    """
    if target.exists():
        raise DataError(f"{target} is there already", "Name another, or remove it first.")


def _put_in(
    temporary: Path, facts: dict[str, Any], source: Path, weights_dir: str | Path | None
) -> dict[str, str]:
    """Write each backbone's weights; which file is whose."""
    from safetensors.torch import save

    had: dict[str, str] = facts.get("weights") or {}
    names = {}
    for number, entry in enumerate(facts["backbones"]):
        selector = entry["selector"]
        if selector in had:
            names[selector] = had[selector]
            continue
        # As it is once it is loaded, since older files may have other names for its tensors.
        network = whole_network(entry, weights_dir)
        name = f"weights/{number}-{file_stem(entry['name'])}.safetensors"
        (temporary / name).parent.mkdir(exist_ok=True)
        state = {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}
        (temporary / name).write_bytes(save(state))  # save_file makes it private
        names[selector] = name
    return names


TOLERANCE = 1e-4
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_CHECKED = 5
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")  # they tell their own developers a great deal


@dataclass(frozen=True)
class Exported:
    """How the check came out.

    Attributes
    ----------
    images : int
        Generated ones, on which both were run.
    difference : float
        The largest between a probability of onnxruntime's and ours, both in fp32.
    """

    images: int
    difference: float


def export_onnx(
    run: str | Path,
    file: str | Path,
    *,
    reports: str | Path = "reports",
    weights_dir: str | Path | None = None,
) -> Exported:
    """Write backbones, fusion and head as one ONNX graph, and check it with onnxruntime.

    The graph computes in fp32. It takes one uint8 input (n, 3, height, width) for each
    preprocessing, of RGB pixels that are resized and cut already ("pixels" where there is one,
    else "pixels_0", "pixels_1", …), and gives "probabilities" (n, classes). Its metadata hold
    `classes`, `preprocess` and `name` as JSON.

    Parameters
    ----------
    run : str or Path
        See `load_model`.
    file : str or Path
        Must not be there yet; written when the check has passed.
    reports : str or Path, default "reports"
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).

    Returns
    -------
    Exported

    Raises
    ------
    UnknownName
        For a fusion or head that can't be written so.
    DataError
        If the file is there.
    FeatcacheError
        If a library is not installed, or the graph gives other probabilities than ours.
    """
    _need_libraries()
    folder, target = find_model(run, reports), Path(file).expanduser()
    refuse_existing(target)
    facts = model_facts(folder)
    backbones = open_backbones_of(folder, facts, weights_dir, absent="refuse")
    preprocesses = [backbone.preprocess for backbone in backbones]
    ours = classifier_of(
        folder, facts, backbones, [open_engine("cpu", "fp32", "eager", _CHECKED)] * len(backbones)
    )
    graph: Graph | TunedGraph
    if isinstance(ours, Tuned):
        graph = TunedGraph(ours.network, preprocesses)
    else:
        rest = as_module(ours.pipeline, facts["classes"])
        graph = Graph([b.build() for b in backbones], preprocesses, rest)
    names = [f"pixels_{i}" for i in range(len(graph.inputs))]
    names = names if len(names) > 1 else ["pixels"]
    with replacing(target) as temporary:
        _write(graph.eval(), names, temporary, facts)
        difference = _difference(temporary, names, graph.inputs, ours)
        if not difference <= TOLERANCE:
            raise FeatcacheError(
                f"the ONNX graph's probabilities differ from ours by {difference:.1e}, more than "
                f"{TOLERANCE:.0e}; {target} is not written",
                "Label images with featcache predict, and report this.",
            )
    return Exported(_CHECKED, difference)


def _need_libraries() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise FeatcacheError(
            f"the ONNX export needs {', '.join(missing)}, not installed",
            'pip install "featcache[onnx]"',
        )


def _write(
    graph: Graph | TunedGraph, names: Sequence[str], path: Path, facts: Mapping[str, Any]
) -> None:
    import onnx

    # Two images: a batch of one would be taken for a constant.
    pixels = tuple(torch.zeros(2, 3, p.crop, p.crop, dtype=torch.uint8) for p in graph.inputs)
    many = torch.export.Dim("n")
    try:
        with silence(*_NOISY), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                graph,
                pixels,
                dynamo=True,
                input_names=list(names),
                output_names=["probabilities"],
                dynamic_shapes=(tuple({0: many} for _ in pixels),),
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        first = first_line(error)
        raise FeatcacheError(
            f"{facts['name']} can't be written as an ONNX graph: {first}",
            f"Label images with featcache predict, or try a newer torch than {torch.__version__}.",
        ) from error
    model = program.model_proto  # type: ignore[union-attr]
    metadata = {
        "name": facts["name"],
        "classes": facts["classes"],
        "preprocess": described_inputs(graph, names),
        "trained_on": facts["trained_on"],
    }
    onnx.helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    )
    for node in (*model.graph.node, *(one for part in model.functions for one in part.node)):
        _without_traces(node.metadata_props)
    onnx.save_model(model, str(path))


def _without_traces(metadata: Any) -> None:
    """Take out where in this machine's folders the network's code lies."""
    kept = [(one.key, one.value) for one in metadata if "stack_trace" not in one.key]
    del metadata[:]
    for key, value in kept:
        metadata.add(key=key, value=value)


def _difference(path: Path, names: Sequence[str], inputs: Sequence[Preprocess], ours: Any) -> float:
    """The largest difference on generated images, in batches of several and of one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    pixels = {p: _picture(random, p.crop) for p in inputs}
    _, expected = ours(pixels)  # (n, classes)

    def theirs(rows: slice) -> NDArray[np.float32]:
        feed = {name: pixels[p][rows] for name, p in zip(names, inputs, strict=True)}
        found: NDArray[np.float32] = session.run(None, feed)[0]  # (n, classes)
        return found

    several, one = theirs(slice(None)), theirs(slice(0, 1))
    return float(max(np.abs(several - expected).max(), np.abs(one - expected[:1]).max()))


def _picture(random: np.random.Generator, side: int) -> Pixels:
    """Images of coarse patches and noise (n, 3, side, side), all different."""
    coarse = random.integers(0, 200, (_CHECKED, 3, 4, 4))
    patches = coarse.repeat(-(-side // 4), axis=2).repeat(-(-side // 4), axis=3)
    noise = random.integers(0, 56, (_CHECKED, 3, side, side))
    return (patches[:, :, :side, :side] + noise).astype(np.uint8)
