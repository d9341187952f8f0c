"""Classify: from the pixels of one batch to labels and probabilities, by what a bundle holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError
from featcache.extraction.backbone import Backbone
from featcache.extraction.engine import Engine
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.extraction.weights import Absent
from featcache.prediction.backbones import open_recorded, preprocess_of

Said = tuple[NDArray[np.str_], NDArray[Any] | None]


class Classifier(Protocol):
    """From the pixels of one batch, cut for each preprocessing, to labels and probabilities."""

    def __call__(self, pixels: Mapping[Preprocess, Pixels]) -> Said: ...


def open_backbones_of(
    folder: Path,
    facts: Mapping[str, Any],
    weights_dir: str | Path | None = None,
    own: Sequence[Backbone] = (),
    absent: Absent = "download",
) -> list[Backbone]:
    """A bundle's backbones, with its own weights if it stands alone; see `open_recorded`."""
    bundled = facts.get("weights") or {}
    if facts["kind"] == "finetuned":
        # The tuned network brings its own weights; only the preprocessing is taken from here.
        try:
            return [described(entry) for entry in facts["backbones"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"the model's entry of a backbone is damaged: {error!r}") from None
    return [
        open_recorded(
            entry,
            folder / bundled[entry["selector"]] if entry.get("selector") in bundled else None,
            weights_dir,
            {one.name: one for one in own}.get(entry["name"]),
            absent,
        )
        for entry in facts["backbones"]
    ]


def classifier_of(
    folder: Path, facts: dict[str, Any], backbones: Sequence[Backbone], engines: Sequence[Engine]
) -> OnFeatures | Tuned:
    """What a bundle's files make of pixels."""
    if facts["kind"] == "finetuned":
        return Tuned(folder, facts, backbones, engines[0])
    return OnFeatures(folder, facts, backbones, engines)


class OnFeatures:
    """Backbones give vectors, and the pipeline takes them side by side."""

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        backbones: Sequence[Backbone],
        engines: Sequence[Engine],
    ) -> None:
        from featcache.fitting.persist import load_pipeline

        self.pipeline = load_pipeline(folder, facts["parts"])
        self._classes = np.array(facts["classes"])
        self._stored = [entry["dtype"] for entry in facts["backbones"]]
        self._backbones = backbones
        self._networks = [
            engine.load(backbone) for engine, backbone in zip(engines, backbones, strict=True)
        ]
        dims = [entry["dim"] for entry in facts["backbones"]]
        if [network.dim for network in self._networks] != dims:
            found = [network.dim for network in self._networks]
            raise DataError(f"the backbones' vectors are {found} wide, the model takes {dims}")

    def __call__(self, pixels: Mapping[Preprocess, Pixels]) -> Said:
        from featcache.fitting.fit_one import predict_all

        parts = [
            network.run(pixels[backbone.preprocess]).astype(stored).astype(np.float32)
            for network, backbone, stored in zip(
                self._networks, self._backbones, self._stored, strict=True
            )
        ]
        X = np.concatenate(parts, axis=1)  # (n, d1 + … + dk)
        return predict_all(self.pipeline, X, self._classes)


class Tuned:
    """One fine-tuned network from pixels to logits."""

    def __init__(
        self, folder: Path, facts: dict[str, Any], backbones: Sequence[Backbone], engine: Engine
    ) -> None:
        from featcache.finetuning.saved import load_network

        self.network = load_network(folder, facts).to(engine.device)
        self._backbones = backbones
        self._classes = np.array(facts["classes"])
        self._engine = engine

    def __call__(self, pixels: Mapping[Preprocess, Pixels]) -> Said:
        import torch

        n = len(next(iter(pixels.values())))
        size = self._engine.at_once or self._engine.batch_size
        parts = [self._logits(pixels, start, min(start + size, n), size)
                 for start in range(0, n, size)]  # fmt: skip
        logits = torch.cat(parts)  # (n, classes)
        proba: NDArray[Any] = logits.double().softmax(1).cpu().numpy()  # (n, classes)
        return self._classes[proba.argmax(1)], proba

    def _logits(self, pixels: Mapping[Preprocess, Pixels], start: int, end: int, size: int) -> Any:
        """One forward pass of exactly `size` images, filled up if short; (end - start, classes)."""
        import torch

        inputs = []
        for backbone in self._backbones:
            cut = pixels[backbone.preprocess][start:end]
            batch = torch.zeros((size, *cut.shape[1:]), dtype=torch.uint8)  # (b, 3, h, w)
            batch[: end - start] = torch.from_numpy(cut)
            inputs.append(backbone.preprocess.normalise(batch.to(self._engine.device)))
        with torch.inference_mode():
            return self.network(*inputs)[: end - start]


def described(entry: Mapping[str, Any]) -> Backbone:
    """A backbone that is known by its preprocessing only."""

    def absent() -> Any:
        raise DataError(f"{entry['name']} is part of the tuned network")

    return Backbone(
        name=entry["name"],
        library=entry["library"],
        weights=entry["weights"],
        weights_sha256=entry["weights_sha256"],
        preprocess=preprocess_of(entry),
        build=absent,
        layer=entry["layer"],
    )
