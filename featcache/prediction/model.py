"""Model: what a run learned, ready to label new images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, counted
from featcache.extraction.backbone import Backbone
from featcache.extraction.engine import open_engine
from featcache.extraction.loader import count_workers, load_batches
from featcache.images.manifest import Content
from featcache.prediction.classify import Classifier, classifier_of, open_backbones_of
from featcache.prediction.facts import model_facts
from featcache.prediction.find import find_model
from featcache.prediction.paths import as_images, list_paths

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
            Where an image can't be read; `stream` goes on after those.
        """
        return np.array([one.label for one in self._all(images)], dtype=np.str_)  # (n,)

    def predict_proba(self, images: Pictures) -> NDArray[Any]:
        """The probabilities of each image (n, classes), in the order of `classes`.

        Raises
        ------
        DataError
            Where an image can't be read, or the model gives no probabilities.
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
        for batch in load_batches(
            images, rows, self._preprocesses, self._batch_size, self._threads
        ):
            said = [Prediction(row, "", None, why.text) for row, why in batch.problems.items()]
            if len(batch.rows):
                labels, proba = self._classify(batch.pixels)
                given = [None] * len(labels) if proba is None else proba
                said += [
                    Prediction(*one)
                    for one in zip(batch.rows.tolist(), labels.tolist(), given, strict=True)
                ]
            done += len(said)
            if progress is not None:
                progress(done, len(images))
            yield from sorted(said, key=lambda one: one.row)

    def _all(self, images: Pictures) -> list[Prediction]:
        several = [images] if isinstance(images, str | Path | np.ndarray) else list(images)
        contents: list[str | Content] = []
        for one in several:
            contents += [one] if isinstance(one, np.ndarray) else list_paths([one], lambda: ())
        said = list(self.stream(contents))
        bad = [one for one in said if one.problem]
        if bad:
            shown = "; ".join(
                f"{named if isinstance(named := contents[one.row], str) else one.row}: "
                f"{one.problem}"
                for one in bad[:_SHOWN]
            )
            raise DataError(f"{len(bad)} of {counted(len(said), 'image')} can't be read: {shown}")
        return said


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
        Where there is no such run, it has no model, or the model can't be read.
    WeightsError
        Where the weights that it was trained on are not at hand.
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
