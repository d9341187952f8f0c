"""Protocols of fine-tuning against one another, by validation: none is chosen on test rows.

    python benchmarks/protocols.py --data cifar10=/data/cifar10/train@64@240 \\
        --data digits=digits@32@60 --backbone resnet18,timm:tf_efficientnet_lite0 [--seeds 3]

`--data NAME=SPEC@SIDE@MOST`: at SIDE pixels, with at most MOST images of each class. A third of
them validates, one in sixteen is set aside. A row for each protocol: the best validation accuracy
and the mean cross entropy there, over seeds. What stands in `--reports` is not trained again, and
a training that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np

import featcache as fc
from featcache.finetuning.finetune import finetune
from featcache.finetuning.options import Options
from featcache.images.manifest import Images, strings, subsample
from featcache.reporting.schema import Run

LOW = {"backbone_lr": 1e-4, "schedule": "cosine", "warmup": 0.5}
FROZEN_1 = {**LOW, "freeze_bn": True, "freeze_epochs": 1, "lr": 1e-3}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "study": {},
    "study, batch norms frozen": {"freeze_bn": True},
    "backbones 3e-5, cosine, bn frozen": {**LOW, "backbone_lr": 3e-5, "freeze_bn": True},
    "backbones 1e-4, cosine": LOW,
    "backbones 1e-4, cosine, bn frozen": {**LOW, "freeze_bn": True},
    "… frozen for 1, head 1e-3": FROZEN_1,
    "… 3e-4": {**FROZEN_1, "backbone_lr": 3e-4},
    "… 3e-4, layer decay 0.7": {**FROZEN_1, "backbone_lr": 3e-4, "layer_decay": 0.7},
    "… 3e-4, average of weights": {**FROZEN_1, "backbone_lr": 3e-4, "ema": 0.98},
    "… 3e-4, bn moving": {**FROZEN_1, "freeze_bn": False, "backbone_lr": 3e-4},
    "… frozen for 1, head 1e-3, warm-up 1, clip 1": {**FROZEN_1, "warmup": 1.0, "clip": 1.0},
    "… the same, 2e-4": {**FROZEN_1, "warmup": 1.0, "clip": 1.0, "backbone_lr": 2e-4},
    "… the same, frozen for 3": {**FROZEN_1, "warmup": 1.0, "clip": 1.0, "freeze_epochs": 3},
}


def main() -> None:
    """Train what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", action="append", required=True, metavar="NAME=SPEC@SIDE@MOST")
    parser.add_argument("--backbone", default="resnet18,timm:tf_efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="numbers of protocols, from 0")
    parser.add_argument("--weights-dir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--reports", default="reports/protocols")
    asked = parser.parse_args()
    logging.getLogger("featcache").setLevel(logging.WARNING)
    wanted = [int(one) for one in asked.only.split(",")] if asked.only else range(len(PROTOCOLS))
    names = [list(PROTOCOLS)[number] for number in wanted]
    rows: dict[str, list[str]] = {name: [] for name in names}
    heading = []
    for spec in asked.data:
        data, _, rest = spec.partition("=")
        source, side, most = rest.rsplit("@", 2)
        images = thinned(data, source, int(most))
        for backbone in asked.backbone.split(","):
            heading.append(f"{data}, {backbone.removeprefix('timm:tf_efficientnet_')}")
            for name in names:
                runs = [
                    finetune(
                        images, backbone=backbone, image_size=int(side), seed=seed,
                        options=Options.of("study", **PROTOCOLS[name], validation=1 / 3),
                        weights_dir=asked.weights_dir, device=asked.device,
                        precision="bf16" if backbone == "resnet18" else "fp32",
                        workers=1, reports=asked.reports, test_split=True,
                    )
                    for seed in range(asked.seeds)
                ]  # fmt: skip
                rows[name].append(cell(runs))
                print(f"{heading[-1]}: {name}: {rows[name][-1]}", flush=True)
    print(f"\n| protocol | {' | '.join(heading)} |\n|---|{'---|' * len(heading)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def thinned(name: str, source: str, most: int) -> Images:
    """At most so many images of a class; one in sixteen is the test split, the rest is to train."""
    images = subsample(fc.open_images(source, name=name, cache=None), most)
    split = ["test" if row % 16 == 0 else "train" for row in range(len(images))]
    return replace(images, split=strings(split))


def cell(runs: list[Run]) -> str:
    """Best validation accuracy, the last epoch's, and the best epoch's cross entropy; seconds."""
    best, last, loss = [], [], []
    for run in runs:
        history = json.loads((run.folder / "metrics.json").read_text())["folds"][0]["history"]
        accuracy = history["val_accuracy"]
        at = int(np.argmax(accuracy))
        best.append(accuracy[at])
        last.append(accuracy[-1])
        loss.append(history["val_loss"][at])
    seconds = np.mean([run.fit_seconds for run in runs])
    spread = f" ± {np.std(best, ddof=1):.4f}" if len(best) > 1 else ""
    return (
        f"{np.mean(best):.4f}{spread} (last {np.mean(last):.4f}, loss {np.mean(loss):.3f}, "
        f"{seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
