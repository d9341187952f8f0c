"""Model: what a run learned, ready to label new images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, counted
from featcache.extraction.backbone import Backbone
from featcache.extraction.engine import Engine, open_engine
from featcache.extraction.loader import Loading, count_workers, load_batches
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.extraction.weights import Absent
from featcache.images.manifest import Content
from featcache.prediction.bundle_reader import find_model, model_facts, open_recorded, preprocess_of
from featcache.prediction.inputs import as_images, list_paths

Progress = Callable[[int, int], None]
Pictures = str | Path | NDArray[Any] | Sequence[str | Path | NDArray[Any]]
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was said of one image.

    Attributes
    ----------
    row : int
        Its place among the images that were given.
    label : str
        The predicted class; "" where the image can't be read.
    proba : float array of shape (classes,), or None
        In the order of the model's `classes`. None where the model gives no probabilities.
    problem : str
        Why the image can't be read; "" where it can.
    """

    row: int
    label: str
    proba: NDArray[Any] | None
    problem: str = ""


class Model:
    """A run's model; see `load_model`.

    Attributes
    ----------
    facts : dict
        All of model.json.
    folder : Path
        Where it was read.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        backbones: Sequence[Backbone],
        classify: Classifier,
        batch_size: int,
        threads: int,
    ) -> None:
        self.folder = folder
        self.facts = facts
        self._preprocesses = list(dict.fromkeys(b.preprocess for b in backbones))
        self._classify = classify
        self._batch_size = batch_size
        self._threads = threads

    def __repr__(self) -> str:
        return f"Model({self.facts['name']}, {counted(len(self.classes), 'class')}, {self.folder})"

    @property
    def classes(self) -> list[str]:
        """The labels, in the order of the probabilities."""
        return list(self.facts["classes"])

    def predict(self, images: Pictures) -> NDArray[np.str_]:
        """The label of each image (n,), in the order given.

        Parameters
        ----------
        images : str, Path, uint8 array of shape (h, w, 3), or a sequence of these
            A folder or pattern stands for its images, sorted.

        Raises
        ------
        DataError
            If an image can't be read; `stream` goes on after those.
        """
        return np.array([one.label for one in self._all(images)], dtype=np.str_)  # (n,)

    def predict_proba(self, images: Pictures) -> NDArray[Any]:
        """The probabilities of each image (n, classes), in the order of `classes`.

        Parameters
        ----------
        images : str, Path, uint8 array of shape (h, w, 3), or several
            Files, folders, URLs, or pixels.

        Raises
        ------
        DataError
            If an image can't be read, or the model gives no probabilities.
        """
        found = [one.proba for one in self._all(images)]
        if any(row is None for row in found):
            raise DataError(
                f"{self.facts['name']} gives no probabilities", "Call predict, for the labels."
            )
        return np.array(found)  # (n, classes)

    def stream(
        self, contents: Sequence[str | Content], progress: Progress | None = None
    ) -> Iterator[Prediction]:
        """Label images a batch at a time, those that can't be read included, in order.

        Parameters
        ----------
        contents : sequence of str, bytes or uint8 arrays of shape (h, w, 3)
            A text is a file's path.
        progress : callable, optional
            Called with the images done and the images to do.
        """
        images = as_images(list(contents))
        rows = np.arange(len(images), dtype=np.intp)
        done = 0
        loading = Loading(self._threads)  # which cuts all images here
        for batch in load_batches(images, rows, self._preprocesses, self._batch_size, loading):
            predictions = [
                Prediction(row, "", None, why.text) for row, why in batch.problems.items()
            ]
            if len(batch.rows):
                labels, proba = self._classify(cast("dict[Preprocess, Pixels]", batch.pixels))
                probabilities = [None] * len(labels) if proba is None else proba
                predictions += [
                    Prediction(*one)
                    for one in zip(batch.rows.tolist(), labels.tolist(), probabilities, strict=True)
                ]
            done += len(predictions)
            if progress is not None:
                progress(done, len(images))
            yield from sorted(predictions, key=lambda one: one.row)

    def _all(self, images: Pictures) -> list[Prediction]:
        several = [images] if isinstance(images, str | Path | np.ndarray) else list(images)
        contents: list[str | Content] = []
        for one in several:
            contents += [one] if isinstance(one, np.ndarray) else list_paths([one], lambda: ())
        predictions = list(self.stream(contents))
        bad = [one for one in predictions if one.problem]
        if bad:
            shown = "; ".join(
                f"{named if isinstance(named := contents[one.row], str) else one.row}: "
                f"{one.problem}"
                for one in bad[:_SHOWN]
            )
            raise DataError(
                f"{len(bad)} of {counted(len(predictions), 'image')} can't be read: {shown}"
            )
        return predictions


def load_model(
    run: str | Path,
    *,
    reports: str | Path = "reports",
    backbone: Backbone | Sequence[Backbone] = (),
    weights_dir: str | Path | None = None,
    device: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
) -> Model:
    """Load a run's model, with the backbones that it was trained on.

    Preprocessing, weights and precision are those that were recorded.

    Parameters
    ----------
    run : str or Path
        A run folder, its `model/` folder or a copy of that, or the beginning of a run folder's
        name below `reports`.
    reports : str or Path, default "reports"
    backbone : Backbone or several, default ()
        Objects of your own that it was trained on.
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).
    device, engine, batch_size, workers
        See `fill_cache`.

    Returns
    -------
    Model

    Raises
    ------
    UnknownName, DataError
        If there is no such run, it has no model, or the model can't be read.
    WeightsError
        If the weights that it was trained on are not at hand.
    """
    folder = find_model(run, reports)
    facts = model_facts(folder)
    own = [backbone] if isinstance(backbone, Backbone) else backbone
    backbones = open_backbones_of(folder, facts, weights_dir, own)
    threads = count_workers(workers)
    engines = [
        open_engine(device, entry["precision"], engine, batch_size) for entry in facts["backbones"]
    ]
    classify = classifier_of(folder, facts, backbones, engines)
    return Model(folder, facts, backbones, classify, engines[0].batch_size, threads)


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
    bundled, quantised = facts.get("weights") or {}, facts.get("quantised") or {}
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
            folder / quantised[entry["selector"]] if entry.get("selector") in quantised else None,
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
        # It may know fewer: a class need not have rows in the training split.
        strange = {str(label) for label in getattr(self.pipeline, "classes_", ())}
        strange -= set(facts["classes"])
        if strange:
            raise DataError(
                f"{folder} is damaged, or was changed: its pipeline says {sorted(strange)[0]!r}, "
                "which is no class in model.json",
                "Copy the whole folder again, or fit it again.",
            )
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
        from featcache.fitting.fold import predict_all

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
        from featcache.finetuning.serialization import load_network

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
