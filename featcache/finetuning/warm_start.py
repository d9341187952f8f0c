"""Warm start: the frozen epochs on cached features, which cost seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.errors import CacheMissing, counted
from featcache.extraction.backbone import Backbone
from featcache.finetuning.hardware import seeded
from featcache.finetuning.trainer import Trainer
from featcache.images.manifest import Images
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile
from featcache.store.key import Entry
from featcache.store.spec import extract_commands

_PRECISIONS = ("fp32", "bf16", "fp16")


def cached_vectors(images: Images, backbones: Sequence[Backbone], cache: str) -> Tensor:
    """The cached vectors of the un-augmented images, float32 (n, d).

    Raises
    ------
    CacheMissing
        If the cache lacks a backbone with these weights and this size.
    """
    store = Cache(cache)
    wanted, missing = [], []
    for backbone in backbones:
        keys = [backbone.key(precision) for precision in _PRECISIONS]
        there = [key for key in keys if store.path(images.name, key).is_file()]
        if there:
            wanted.append(f"{backbone.name}@{there[0].digest}")
        else:
            missing.append(backbone)
    if missing:
        which = ", ".join(f"{one.name} at {one.preprocess.crop} px" for one in missing)
        files = [(store.path(images.name, key), key) for key in (one.key() for one in missing)]
        entries = [Entry(images.name, path, key, 0, 0, 0, 0.0) for path, key in files]
        raise CacheMissing(
            f"the cache has no features of {which} for {images.name}, to begin with",
            "Leave --warm-start out, or:\n"
            + extract_commands(entries, images.source, options=images.options),
        )
    chosen = store.choose(images, wanted)
    features = store.features(images, chosen)
    names = {key: name for name, key in zip(features.names, features.keys, strict=True)}
    features = features.select([names[one.partition("@")[2]] for one in wanted])
    where = {id_: row for row, id_ in enumerate(features.ids.tolist())}
    absent = [id_ for id_ in images.ids.tolist() if id_ not in where]
    if absent:
        raise CacheMissing(
            f"the cache has no vectors of {counted(len(absent), 'image')} ({absent[0]}, …)",
            extract_commands(chosen, images.source, options=images.options),
        )
    order = np.array([where[id_] for id_ in images.ids.tolist()], np.intp)
    return torch.from_numpy(features.X[order])


def rival_keys(backbone: Backbone) -> list[str]:
    """Digests of the cache keys of a backbone as it is, in every precision."""
    return [backbone.key(precision).digest for precision in _PRECISIONS]


def extraction_seconds(data: str, backbones: Sequence[Backbone], cache: str) -> float | None:
    """What the features of these backbones took to compute; None where the cache lacks some.

    Each file says what its own extraction took, all backbones of it together: the longest counts.
    """
    store, found = Cache(cache), []
    for backbone in backbones:
        paths = [store.path(data, backbone.key(precision)) for precision in _PRECISIONS]
        there = [path for path in paths if path.is_file()]
        if not there:
            return None
        with FeatureFile(there[0]) as file:
            found.append(float(file.attributes.get("seconds", math.nan)))
    longest = max(found)
    return None if math.isnan(longest) else longest


def warm_up(trainer: Trainer, vectors: Tensor) -> None:
    """Run a trainer's frozen epochs on vectors (n, d): its fusion and head learn as they would.

    The columns are standardised by all training rows. The rate is constant, images are as they
    are, and each epoch is validated on cached vectors too.
    """
    network, options = trainer.network, trainer.options
    train = torch.from_numpy(trainer.train_rows)
    network.standardise(vectors[train])
    device = network.mean.device
    X = (vectors.to(device) - network.mean) / network.scale  # (n, d)
    optimiser = torch.optim.AdamW(
        network.joint.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    held = torch.from_numpy(trainer.validation_rows).to(device)
    for epoch in range(options.freeze_epochs):
        generator = torch.Generator().manual_seed(trainer.seed * 7919 + epoch)
        order = train[torch.randperm(len(train), generator=generator)]
        total = torch.zeros((), device=device)
        network.joint.train()
        with seeded(trainer.seed * 7919 + epoch, torch.device(device)):
            for rows in torch.split(order.to(device), options.batch_size):
                loss = functional.cross_entropy(
                    network.joint(X[rows]), trainer.codes[rows],
                    label_smoothing=options.label_smoothing,
                )  # fmt: skip
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
                total += loss.detach() * len(rows)
        network.joint.eval()
        with torch.inference_mode():
            logits = network.joint(X[held]).float().cpu()  # (v, classes)
        if trainer.average is not None:
            trainer.average.update_parameters(network)
        trainer.note(total.item() / len(order), logits)
