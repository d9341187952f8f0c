"""Fine-tune: the whole of it, from images to a run folder beside those of cached features."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache.errors import DataError, counted
from featcache.extraction.backbone import Backbone, BackboneOptions
from featcache.extraction.registry import open_backbones
from featcache.finetuning.data import (
    Pixels,
    cached_vectors,
    extraction_seconds,
    rival_keys,
    table,
    validation_rows,
)
from featcache.finetuning.hardware import Meter, open_accelerator, precision_of
from featcache.finetuning.network import FusedNetwork, build, check_trainable, make_head
from featcache.finetuning.options import Options
from featcache.finetuning.serialization import network_writer
from featcache.finetuning.trainer import Trainer
from featcache.fitting.evaluate import Result, accuracy_interval
from featcache.fitting.fold import FoldResult
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.leakage import refuse_trained
from featcache.fitting.metrics import positive_label, scores
from featcache.fitting.networks import seeded
from featcache.fitting.splits import Fold, make_folds
from featcache.images.manifest import Images
from featcache.reporting.bundle import SPLIT
from featcache.reporting.comparison import write_comparison
from featcache.reporting.run_folder import library_versions, save_run
from featcache.reporting.schema import Run, folder_name, read_run, rows_digest, run_digest
from featcache.store.features import Features

log = logging.getLogger("featcache")

HEAD = "mlp.finetuned"  # what stands for the head in names and tables
_SAMPLE = 2048  # training images that fix the scale of the vectors


def finetune(
    images: Images,
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = "resnet18",
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    image_size: int | None = None,
    fusion: str = "concat",
    head: str = "mlp",
    settings: Mapping[str, Any] | None = None,
    options: Options | None = None,
    warm_start: bool = False,
    folds: int | None = None,
    test_split: bool | None = None,
    group: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    workers: int | str = "auto",
    minutes: float = 10.0,
    cache: str | Path = "cache",
    reports: str | Path = "reports",
    again: bool = False,
    command: str = "",
) -> Run:
    """Train backbones, fusion and head end to end, and score them as a cached head is scored.

    Each fold's network begins with the backbones' weights. Its best epoch is picked on validation
    rows; its test rows are looked at once, at the end. The same again, after a kill, goes on from
    the last checkpoint; when all is done, it reads the run folder.

    Parameters
    ----------
    images : Images
    backbone : str, Backbone, or several, default "resnet18"
    weights, weights_dir, image_size
        See `open_backbone`.
    fusion : {"concat", "attention", "gated", "hadamard"}, default "concat"
    head : {"mlp"}, default "mlp"
    settings : mapping, optional
        Of fusion and head by dotted name, for instance {"head.hidden": [512]}.
    options : Options, optional
        How it is trained.
    warm_start : bool, default False
        Run the frozen epochs on cached features.
    folds, test_split, group, seed
        See `make_folds`; the seed also draws initial weights, order, augmentation and dropout.
    device, precision
        See `hardware.open_accelerator`.
    workers : int or "auto"
        Threads that decode.
    minutes : float, default 10
        Between checkpoints within an epoch.
    cache, reports : str or Path
    again : bool, default False
        Train even what was trained before, from the beginning.
    command : str, default ""
        What makes this run again, for its run.json.

    Returns
    -------
    Run
        Its head is called "mlp.finetuned". Of several folds, the folder holds the first's network.

    Raises
    ------
    FeatcacheError
        If accelerate is missing, memory runs out, or the loss is no longer finite.
    CacheMissing
        For a warm start from features that are not there.
    CacheRefused
        If the weights were tuned on rows that would be tested.
    """
    options = Options() if options is None else options
    settings = dict(settings or {})
    made = make_head(fusion, head, settings, seed)  # refuses bad settings before any work
    accelerator = open_accelerator(device, precision)
    log.setLevel(log.level if accelerator.is_main_process else logging.ERROR)
    opened = BackboneOptions(weights, weights_dir, image_size=image_size)
    # As `canonical` sorts them: the order makes no other candidate.
    backbones = sorted(open_backbones(backbone, opened), key=lambda one: one.name)
    check_trainable(backbones)
    pixels = Pixels(images, [b.preprocess for b in backbones], accelerator.device, workers)
    images = pixels.drop_bad()
    features = table(images, backbones)
    split = make_folds(features, folds, test_split, group, seed)
    refuse_trained(features, split)
    model = _Model(backbones, fusion, made, settings, seed)
    training = _Training(options, accelerator, warm_start, minutes, groups=group != "image")
    study = _Study(model, training, pixels, features, split)
    folder = study.folder(Path(reports))
    if (folder / "run.json").is_file() and not again:
        return read_run(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    if again and accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    vectors = cached_vectors(images, backbones, str(cache)) if warm_start else None
    done = study.run(partial, vectors)
    if accelerator.is_main_process:
        facts = study.facts(done, extraction_seconds(features.data, backbones, str(cache)))
        study.save(folder, done, facts | ({"command": command} if command else {}))
        shutil.rmtree(partial, ignore_errors=True)
        write_comparison(Path(reports))
    accelerator.wait_for_everyone()
    return read_run(folder)


@dataclass(frozen=True, eq=False)
class _Model:
    """What is trained."""

    backbones: Sequence[Backbone]
    fusion: str
    head: MLPHead  # with the fusion in it
    settings: dict[str, Any]
    seed: int


@dataclass(frozen=True, eq=False)
class _Training:
    """How it is trained."""

    options: Options
    accelerator: Any
    warm_start: bool
    minutes: float  # between checkpoints
    groups: bool  # whether validation rows keep groups together


@dataclass(frozen=True, eq=False)
class _Done:
    """One fold's network and what it gave."""

    result: FoldResult
    network: FusedNetwork
    blocks: tuple[int, ...]
    best: int  # epoch, from 1
    parts: int
    joules: float | None
    epochs: list[float]  # seconds
    images: int  # trained on in these epochs, one after another


@dataclass(frozen=True, eq=False)
class _Study:
    """A model, trained on every fold."""

    model: _Model
    training: _Training
    pixels: Pixels
    features: Features
    split: Sequence[Fold]

    @cached_property
    def rows(self) -> str:
        """The digest of the rows and folds."""
        return rows_digest(self.features, self.split)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was set besides the defaults, for run.json."""
        return self._settings(self.training.options.named())

    def _settings(self, options: dict[str, Any]) -> dict[str, Any]:
        settings = {**self.model.settings, **options}
        settings["precision"] = precision_of(self.training.accelerator)
        return settings | ({"warm_start": True} if self.training.warm_start else {})

    def folder(self, reports: Path) -> Path:
        """The run folder, which says by its name what was trained, how, and on what."""
        features, model = self.features, self.model
        options = self.training.options
        # Counted from the study's protocol, once the default: so equal runs keep their digests.
        settings = self._settings(options.besides("study")) | {"options": options.plain()}
        digest = run_digest(features, self.rows, model.fusion, HEAD, model.seed, settings)
        name = folder_name(f"{'+'.join(features.names)}.{model.fusion}.{HEAD}", digest)
        return reports / features.data / name

    def run(self, partial: Path, vectors: Tensor | None) -> list[_Done]:
        """All folds, with checkpoints in a folder; of several, the first's network is kept."""
        done: list[_Done] = []
        for fold in self.split:
            one = self._fold(fold, partial / fold.name, vectors)
            done.append(one if not done else replace(one, network=done[0].network))
        return done

    def _fold(self, fold: Fold, folder: Path, vectors: Tensor | None) -> _Done:
        """Train on a fold's training rows, then look at its test rows once."""
        features, model, training = self.features, self.model, self.training
        options, accelerator = training.options, training.accelerator
        classes, codes = np.unique(features.y, return_inverse=True)
        if len(np.unique(codes[fold.train])) < 2:
            raise DataError(f"{fold.name} has training rows of one class only")
        train, held = validation_rows(
            features, fold, options.validation, model.seed, training.groups
        )
        meter = Meter(accelerator.device)
        with seeded(model.seed):
            network, blocks = build(model.backbones, model.head, len(classes), options.freeze_bn)
        label = "" if fold.name == "test" else f"{fold.name}: "
        trainer = Trainer(
            network, self.pixels, torch.from_numpy(codes), train, held, len(classes), options,
            accelerator, model.seed, folder, training.minutes, label,
        )  # fmt: skip
        resumed = trainer.resume()
        if not resumed:
            log.info(
                "%s%s to train on, %d to validate on", label, counted(len(train), "row"), len(held)
            )
            self._begin(trainer, vectors)
        progress = trainer.run()
        started = time.perf_counter()
        proba = trainer.logits(fold.test).double().softmax(1).numpy()  # (n, classes)
        predicted = time.perf_counter() - started
        true, pred = features.y[fold.test], classes[proba.argmax(1)]
        result = FoldResult(
            name=fold.name, ids=features.ids[fold.test], true=true, pred=pred, proba=proba,
            metrics=scores(true, pred, proba, classes.tolist()), fit_seconds=progress.seconds,
            predict_seconds=predicted, train_size=len(fold.train), history=progress.history,
        )  # fmt: skip
        network.cpu()  # the next fold needs the room on the device
        best = int(progress.best[2]) + 1 if progress.best else progress.epoch
        joules = None if resumed else meter.joules
        seen = len(train) * progress.epoch
        return _Done(result, network, blocks, best, progress.parts, joules, progress.epochs, seen)

    def _begin(self, trainer: Trainer, vectors: Tensor | None) -> None:
        """Fix the vectors' scale, on cached vectors or a sample of the images."""
        if vectors is not None:
            trainer.warm_up(vectors)
            return
        step = max(1, len(trainer.train_rows) // _SAMPLE)
        network = trainer.network.eval()
        with torch.inference_mode():
            seen = self.pixels.eval_batches(trainer.train_rows[::step])
            sample = torch.cat([network.embed(*batch) for batch in seen])  # (m, d)
        network.standardise(sample)

    def _result(self, done: Sequence[_Done]) -> Result:
        features, seed = self.features, self.model.seed
        folds = [one.result for one in done]
        classes = np.unique(features.y).tolist()
        return Result(
            backbones=features.names, fusion=self.model.fusion, head=HEAD, data=features.data,
            keys=features.keys, classes=classes, folds=folds,
            interval=accuracy_interval(features, self.split, folds), seed=seed,
            positive=positive_label(classes),
        )  # fmt: skip

    def save(self, folder: Path, done: Sequence[_Done], facts: Mapping[str, Any]) -> None:
        """Write the run folder, with the first fold's network."""
        features, model, result = self.features, self.model, self._result(done)
        train = self.split[0].train
        what = SPLIT if len(self.split) == 1 else f"the training rows of {self.split[0].name}"
        told = {
            "name": result.name,
            "fusion": model.fusion,
            "head": HEAD,
            "settings": model.settings,
            "seed": model.seed,
            "trained_on": {"rows": len(train), "what": what},
            "versions": library_versions(),
        }
        writer = network_writer(
            done[0].network, done[0].blocks, model.backbones, features, train, told
        )
        save_run(
            folder, result, features, self.split, rows=self.rows, seed=model.seed,
            settings=self.settings, write_model=writer, facts=facts,
        )  # fmt: skip

    def facts(self, done: Sequence[_Done], extraction: float | None) -> dict[str, Any]:
        """What run.json says of a fine-tuning besides what it says of every run."""
        accelerator = self.training.accelerator
        device, processes = accelerator.device, accelerator.num_processes
        seconds = sum(one.result.fit_seconds for one in done) / len(done)
        trained = sum(one.images for one in done)
        joules = [one.joules for one in done if one.joules is not None]
        return {
            "stage": "finetuned",
            "options": self.training.options.plain(),
            # Keys of the features that the same weights give, in whatever precision: its rivals'.
            "rivals": [key for one in self.model.backbones for key in rival_keys(one)],
            "best_epoch": [one.best for one in done],
            "epoch_seconds": [one.epochs for one in done],
            "cost": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "processes": processes,
                "wall_seconds": seconds,
                "gpu_seconds": seconds * processes if device.type == "cuda" else None,
                "joules": sum(joules) / len(done) if len(joules) == len(done) else None,
                "images_per_second": trained / sum(sum(one.epochs) for one in done),
                "parts": max(one.parts for one in done),
                "extraction_seconds": extraction,
            },
        }
