"""Quantising: an int8 network, its ranges set on a sample of the data set's own images.

The quantised network is kept in the feature file. A file that is resumed or extended goes on with
it, whatever has become of the data set or of the library since.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache as remember
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.errors import CacheRefused, DataError, FeatcacheError, counted, first_line
from featcache.extraction.backbone import Backbone
from featcache.extraction.loader import cosine, load_sample
from featcache.extraction.network import INT8, FromPixels, quantised, to_graph
from featcache.extraction.preprocess import Pixels
from featcache.extraction.unique_images import UniqueImages
from featcache.hashing import sha256_json
from featcache.images.manifest import Images, has_changed
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, read_quantised
from featcache.store.key import Key

log = logging.getLogger("featcache")

_SAMPLE = 300  # images
_SEED = 0
# NNCF's own choices: weights by channel, activations by tensor, biases corrected; 7 bits in the
# first layer, whose sums would overflow on processors without VNNI.
_METHOD = {"method": "nncf", "preset": "performance", "bias": "fast", "seven_bits": "first layer"}
_COMPARED = 16  # images of the sample
_LEAST = 0.9  # their median cosine with fp32


def calibrated(backbones: Sequence[Backbone], cache: Cache, unique: UniqueImages) -> list[Backbone]:
    """The backbones with all that int8 keys and networks need; nothing is quantised yet.

    A file that the data set has already gives its network. Else one image is drawn from each of
    300 equal stretches of the manifest. Views of a backbone share its network.

    Parameters
    ----------
    backbones : sequence of Backbone
    cache : Cache
    unique : UniqueImages
    """
    done: dict[str, Backbone] = {}
    found = []
    for backbone in backbones:
        plain = backbone.without_view()
        digest = plain.key().digest
        if digest not in done:
            done[digest] = _as_begun(plain, cache, unique.images.name) or _on_sample(plain, unique)
        one = done[digest]
        found.append(replace(backbone, calibration=one.calibration, quantised=one.quantised))
    return found


def as_stored(backbone: Backbone, path: Path, key: Key) -> Backbone:
    """The backbone as it made a feature file: with the file's network, if that is an int8 one."""
    if not key.calibration:
        return backbone

    network = remember(lambda: read_quantised(path))
    return replace(backbone, calibration=key.calibration, quantised=network)


def _as_begun(plain: Backbone, cache: Cache, data: str) -> Backbone | None:
    """With the network of the newest file of this backbone or one of its views, if there is one."""
    for path, key in _files(cache, data):
        known = replace(plain, calibration=key.calibration)
        mine = known.key(INT8, key.dtype)
        view = {"view": plain.preprocess.view}
        if replace(key, preprocess={**key.preprocess, **view}) == mine:
            return as_stored(plain, path, key)
    return None


def _files(cache: Cache, data: str) -> Iterator[tuple[Path, Key]]:
    """The int8 files of a data set, finished or in progress, that hold a network; newest first."""
    folder = cache.folder / data
    paths = [*folder.glob("[!.]*.h5"), *folder.glob(".*.h5.partial")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            with FeatureFile(path) as file:
                key, whole = file.key, bool(file.quantised)
        except CacheRefused:
            continue
        if key.precision == INT8 and whole:
            yield path, key


def _on_sample(plain: Backbone, unique: UniqueImages) -> Backbone:
    """With a network that is quantised on a sample of the images when it is first asked for."""
    rows = draw(unique.rows)
    sample = unique.images.sha256[rows].tolist()
    digest = sha256_json({**_METHOD, "seed": _SEED, "sample": sample})
    return replace(
        plain,
        calibration=digest,
        quantised=remember(lambda: quantise(plain, load(unique.images, rows, plain))),
    )


def draw(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """One row of each of 300 equal stretches, or all rows if there are fewer; always the same."""
    edges = np.linspace(0, len(rows), min(_SAMPLE, len(rows)) + 1).astype(np.intp)
    return rows[np.random.default_rng(_SEED).integers(edges[:-1], edges[1:])]


def load(images: Images, rows: NDArray[np.intp], backbone: Backbone) -> Pixels:
    """The sample's pixels, uint8 (n, 3, crop, crop), without images that don't decode.

    Raises
    ------
    DataError
        If an image of the sample can't be read or has changed, or not one decodes.
    """
    pixels, kept = load_sample(images, rows, backbone.preprocess)
    dropped = np.delete(rows, kept)
    gone = [row for row in dropped.tolist() if not _is_there(images, row)]
    if gone:
        raise DataError(
            f"{counted(len(gone), 'image')} of the {len(rows)} that {backbone.name} is to be "
            f"quantised on can't be read, or changed since they were listed "
            f"({images.ids[gone[0]]}{', …' if len(gone) > 1 else ''})",
            "Put them back, or run again with --rehash, which draws from those that are there.",
        )
    if not len(kept):
        raise DataError(
            f"not one of {counted(len(rows), 'image')} that {backbone.name} is to be quantised on "
            "can be decoded"
        )
    return pixels


def _is_there(images: Images, row: int) -> bool:
    try:
        content = images.read(row)
    except OSError:
        return False
    return not has_changed(content, images.sha256[row])


def quantise(backbone: Backbone, pixels: Pixels) -> bytes:
    """Quantise a backbone's network by NNCF, after training.

    Parameters
    ----------
    backbone : Backbone
    pixels : uint8 array of shape (n, 3, crop, crop)
        What its ranges are set on.

    Returns
    -------
    bytes
        An OpenVINO graph as `network.quantised` reads it.
    """
    log.info("%s: quantising on %s", backbone.name, counted(len(pixels), "image"))
    few = torch.from_numpy(pixels[:: -(-len(pixels) // _COMPARED)])  # (k, 3, crop, crop)
    try:
        module = backbone.build().eval().requires_grad_(False)
        with torch.no_grad():
            exact = FromPixels(module, backbone.preprocess, torch.float32, "cpu")(few).numpy()
            graph = to_graph(module, backbone.preprocess, "fp32", -1)
        network = _packed(_quantised(graph, pixels))
        forward = quantised(replace(backbone, quantised=lambda: network), 1)
        found = np.concatenate([forward(one[None]).numpy() for one in few])  # (k, d)
    except Exception as error:
        raise FeatcacheError(
            f"{backbone.name} can't be quantised: {first_line(error)}", "Choose --precision fp32."
        ) from None
    fidelity = float(np.median(cosine(exact, found)))
    if not fidelity >= _LEAST:
        log.warning("%s in int8 is far from fp32: median cosine %.3f", backbone.name, fidelity)
    return network


def _quantised(graph: Any, pixels: Pixels) -> Any:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # its log and progress bars
        warnings.simplefilter("ignore")
        import nncf

        return nncf.quantize(
            graph,
            nncf.Dataset(list(pixels[:, None])),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(pixels),
        )


def _packed(graph: Any) -> bytes:
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(graph, Path(folder, "network.xml"), compress_to_fp16=False)
        xml, weights = (
            np.frombuffer(Path(folder, f"network.{ending}").read_bytes(), np.uint8)
            for ending in ("xml", "bin")
        )
    packed = io.BytesIO()
    np.savez(packed, xml=xml, weights=weights)
    return packed.getvalue()
