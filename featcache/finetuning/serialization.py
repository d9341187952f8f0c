"""Serialization: the tuned network as a bundle of safetensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featcache.errors import DataError, first_line
from featcache.extraction.backbone import Backbone
from featcache.extraction.registry import open_backbone
from featcache.extraction.state_dict import IN_A_RUN, find_tuned, tuned_file, write_tuned
from featcache.finetuning.network import FusedNetwork, build, make_head
from featcache.reporting.bundle import Writer, backbone_facts, write_facts
from featcache.store.features import Features

HEAD = "network.safetensors"  # what is not in a backbone's own file


def network_writer(
    network: FusedNetwork,
    blocks: Sequence[int],
    backbones: Sequence[Backbone],
    features: Features,
    train: Any,
    facts: Mapping[str, Any],
) -> Writer:
    """What writes a tuned network into a folder, see `reporting.bundle`.

    Parameters
    ----------
    network : FusedNetwork
    blocks : sequence of int
    backbones : sequence of Backbone
        As they were before.
    features : Features
        From `data.table`.
    train : int array
        Rows that it was trained and validated on.
    facts : mapping
        `name`, `fusion`, `head`, `settings`, `seed`, `trained_on` and `versions` of model.json.
    """
    seen = features.sha256[train].tolist()

    def write(folder: Path) -> None:
        weights = folder / IN_A_RUN.name
        weights.mkdir()
        for backbone, module in zip(backbones, network.backbones, strict=True):
            path = weights / tuned_file(backbone.name)
            write_tuned(path, module.state_dict(), seen, backbone.preprocess.plain())
        rest = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in network.state_dict().items()
            if not name.startswith("backbones.")
        }
        save_file(rest, folder / HEAD)
        write_facts(
            folder,
            {
                "kind": "finetuned",
                "data": features.data,
                "classes": sorted(set(features.y.tolist())),
                "backbones": backbone_facts(
                    features.names, blocks, features.keys, [one.key() for one in backbones]
                ),
                **facts,
            },
        )

    return write


def load_network(folder: Path, facts: Mapping[str, Any]) -> nn.Module:
    """The tuned network of a bundle, in evaluation mode.

    Parameters
    ----------
    folder : Path
        The run's model/.
    facts : mapping
        Its model.json.

    Returns
    -------
    Module
        `forward(*pixels)` takes one float32 tensor (n, 3, crop, crop) for each backbone,
        normalised by its preprocess, in the order of `facts["backbones"]`; gives logits
        (n, classes).

    Raises
    ------
    DataError
        If the files are not those of such a network.
    WeightsError
        If a backbone's weights are absent or of another architecture.
    """
    names = [one["name"] for one in facts["backbones"]]
    backbones = [
        open_backbone(name, weights=str(folder / find_tuned(facts["files"], name)))
        for name in names
    ]
    head = make_head(facts["fusion"], "mlp", dict(facts["settings"]), int(facts["seed"]))
    with torch.random.fork_rng(devices=[]):
        network, _ = build(backbones, head, len(facts["classes"]))
    try:
        rest: dict[str, Tensor] = load_file(folder / HEAD)
        missing, unexpected = network.load_state_dict(rest, strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DataError(
            f"{folder / HEAD} can't be read: {first_line(error)}", "Fine-tune again."
        ) from None
    if unexpected or any(not name.startswith("backbones.") for name in missing):
        raise DataError(f"{folder / HEAD} is of another network", "Fine-tune again.")
    return network.eval().requires_grad_(False)
