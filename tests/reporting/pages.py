"""Run folders with hostile names and real images, and what a page must hold."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from noise import noise

from featcache.fitting.evaluate import Result
from featcache.fitting.fold import FoldResult
from featcache.fitting.metrics import interval, scores
from featcache.fitting.splits import Fold, make_folds
from featcache.reporting.run_folder import save_run
from featcache.reporting.schema import Run, rows_digest
from featcache.store.features import Features

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page's elements; fails where tags don't match."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def addresses(self) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags for name in ("src", "href")
                if name in attrs]  # fmt: skip


def check_self_contained(page: Page) -> None:
    """No address leads out of the file, but to other pages of the reports folder."""
    for address in page.addresses():
        assert address.startswith(("data:", "#")) or address.endswith("report.html"), address[:80]
    assert page.all("script") == [{}]  # ours, and none that a label has brought


def make_odd_run(
    reports: Path,
    head: str = "mlp",
    folds: int | None = None,
    n: int = 90,
    right_rate: float = 0.8,
    proba: bool = True,
    history: bool = True,
    backbones: tuple[str, ...] = ("big", "small"),
    ids: list[str] | None = None,
) -> tuple[Run, Features]:
    """A run of three classes, one of them with a hostile name, and so are two ids."""
    classes = sorted(["cat", "dog", HOSTILE])
    rng = np.random.default_rng(0)
    y = np.array(classes)[np.arange(n) % 3]
    ids = ids or [f"{label}/{i}<b>.png" for i, label in enumerate(y)]
    dims = {"big": 3, "small": 2}
    width = sum(dims[name] for name in backbones)
    features = Features(
        X=(rng.normal(size=(n, width)) + (np.arange(n) % 3)[:, None]).astype(np.float32),
        y=y, ids=np.array(ids), sha256=np.array([f"{i:064x}" for i in range(n)]),
        groups=np.full(n, ""), split=np.where(np.arange(n) < n // 2, "train", "test"),
        blocks=tuple(dims[name] for name in backbones), names=backbones,
        keys=tuple(f"key-{name}" for name in backbones), data="toy",
    )  # fmt: skip
    split = make_folds(features, folds)
    done = [_fold(features, fold, classes, rng, right_rate, proba, history) for fold in split]
    right = np.concatenate([fold.true == fold.pred for fold in done])
    result = Result(
        backbones=features.names, fusion="concat", head=head, data="toy", keys=features.keys,
        classes=classes, folds=done, interval=interval(right),
    )  # fmt: skip
    folder = reports / "toy" / f"{result.name}.00000000"
    rows = rows_digest(features, split)
    return save_run(folder, result, features, split, rows=rows, seed=0, settings={}), features


def _fold(
    features: Features, fold: Fold, classes: list[str], rng, right_rate: float, proba: bool,
    history: bool,
) -> FoldResult:  # fmt: skip
    true = features.y[fold.test]
    place = np.searchsorted(classes, true)
    wrong = rng.random(len(true)) > right_rate
    said = np.where(wrong, (place + 1) % 3, place)
    sure = rng.uniform(0.5, 0.99, len(true))
    table = np.repeat((1 - sure)[:, None] / 2, 3, axis=1)  # (n, 3)
    table[np.arange(len(true)), said] = sure
    pred = np.array(classes)[said]
    losses = {"train_loss": [1.0, 0.7, 0.5], "val_loss": [1.1, 0.8, 0.9],
              "val_accuracy": [0.5, 0.7, 0.7]}  # fmt: skip
    return FoldResult(
        name=fold.name, ids=features.ids[fold.test], true=true, pred=pred,
        proba=table if proba else None,
        metrics=scores(true, pred, table if proba else None, classes), fit_seconds=0.5,
        predict_seconds=0.1, train_size=len(fold.train), history=losses if history else None,
    )  # fmt: skip


def toy_images(features: Features):
    """Readable images under the ids of these features."""
    from featcache.images.manifest import from_arrays

    made = from_arrays(
        "toy", [np.asarray(noise(i)) for i in range(len(features))],
        ids=features.ids.tolist(), labels=features.y.tolist(), split=features.split.tolist(),
    )  # fmt: skip
    return replace(made, sha256=features.sha256)
