"""Fine-tuning on a card: it learns, as graphs too, what it saves embeds, killed and resumed."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from card import card, short_of_memory
from small import SmallNet, coloured, small_backbone

from featcache.extraction.extract import extract
from featcache.extraction.loader import cosine
from featcache.finetuning import steps
from featcache.finetuning.finetune import finetune
from featcache.finetuning.options import Options
from featcache.reporting.schema import Run

from .killing import finetune_in_a_process

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> str:
    return card()


def _losses(run: Run) -> list[float]:
    metrics = json.loads((run.folder / "metrics.json").read_text())
    losses: list[float] = metrics["folds"][0]["history"]["train_loss"]
    return losses


def _probabilities(reports: Path) -> np.ndarray:
    """What the one run there says of its test images, (n, classes), in their order."""
    (path,) = reports.glob("*/*/predictions.csv")
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["id"])
    names = [name for name in rows[0] if name.startswith("p_")]
    return np.array([[float(row[name]) for name in names] for row in rows])


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_it_learns(precision: str, device: str, tmp_path: Path) -> None:
    if precision == "fp16" and device == "cpu":
        pytest.skip("fp16 can't be trained on the processor")
    options = Options.of(
        "study", epochs=8, freeze_epochs=0, batch_size=8, lr=1e-3, label_smoothing=0.0, jitter=0.0
    )
    run = finetune(
        coloured(), backbone=small_backbone(), options=options, device=device, precision=precision,
        workers=2, reports=tmp_path / "reports", cache=tmp_path / "cache",
    )  # fmt: skip
    losses = _losses(run)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] / 2
    assert run.metric("accuracy") > 0.8
    cost = json.loads((run.folder / "run.json").read_text())["cost"]
    if device == "cpu":
        assert cost["device"] == "cpu"
        assert cost["gpu_seconds"] is None
    else:
        assert cost["device"] == torch.cuda.get_device_name(device)
        assert cost["gpu_seconds"] > 0


def test_a_step_as_a_graph_is_the_step_that_it_was(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, frozen and not, and a rate that falls."""
    options = Options.of(
        "study",
        epochs=4,
        freeze_epochs=1,
        batch_size=4,
        lr=1e-3,
        schedule="cosine",
        ema=0.5,
        clip=1.0,
    )
    captured: list[int] = []
    capture = steps.capture

    def spy(work: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> object:
        captured.append(len(inputs))
        return capture(work, inputs)

    monkeypatch.setattr(steps, "capture", spy)
    found = []
    for side in (8, 12):  # what lies on the card, and what is cropped here
        for may in (steps.may_capture, lambda accelerator: False):
            with monkeypatch.context() as patch:
                patch.setattr(steps, "may_capture", may)
                run = finetune(
                    coloured(60, side), backbone=small_backbone(), options=options, device=device,
                    precision="fp32", settings={"head.dropout": 0.3}, again=True, workers=2,
                    reports=tmp_path / "reports", cache=tmp_path / "cache",
                )  # fmt: skip
            found.append(_losses(run))
    assert captured == ([] if device == "cpu" else [5, 5, 3, 3])
    np.testing.assert_allclose(found[0], found[1], rtol=0.01)
    np.testing.assert_allclose(found[2], found[3], rtol=0.01)


class Waiting(SmallNet):
    """The processor waits for a number in each pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else x


def test_a_network_that_is_no_graph_is_trained_all_the_same(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = finetune(
        coloured(), backbone=replace(small_backbone(), build=lambda: Waiting(6, norm=True)),
        options=Options.of("study", epochs=3, freeze_epochs=1, batch_size=4, lr=1e-3),
        device=device, precision="fp32", settings={"head.dropout": 0.3}, workers=2,
        reports=tmp_path / "reports", cache=tmp_path / "cache",
    )  # fmt: skip
    assert _losses(run)[-1] < _losses(run)[0]
    assert caplog.text.count("no CUDA graph") == (device != "cpu")


def test_the_saved_backbone_embeds_there_and_on_the_processor(device: str, tmp_path: Path) -> None:
    images = coloured(36, 32)
    run = finetune(
        images, backbone="resnet18", weights="random:0", image_size=32, device=device, workers=2,
        options=Options(epochs=4, freeze_epochs=1, batch_size=16, backbone_lr=1e-5),
        reports=tmp_path / "reports", cache=tmp_path / "cache",
    )  # fmt: skip
    assert _losses(run)[-1] < _losses(run)[0]
    ours, theirs = (
        extract(
            images, backbone="resnet18", weights=str(run.folder), device=where, precision="fp32",
            cache=tmp_path / f"{number}",
        )
        for number, where in enumerate((device, "cpu"))
    )  # fmt: skip
    assert ours.X.shape == (36, 512)
    assert ours.names == theirs.names
    assert ours.trained_on == theirs.trained_on
    assert len(ours.trained_on[0]) == 24
    assert cosine(ours.X, theirs.X).min() >= 0.9999


def test_a_batch_that_does_not_fit_is_cut_and_learned_from(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the second stage of resnet18 there are nine maps of 128 x 64 x 56 x 56 x 4 bytes and
    two of four times that to keep for the gradient: 1.7 GB."""
    side, count = (224, 128) if device != "cpu" else (32, 16)
    options = Options.of(
        "study", epochs=1, freeze_epochs=0, batch_size=count, validation=0, mixup=0.2
    )
    with short_of_memory(device, 1_600_000_000):
        run = finetune(
            coloured(count * 3 // 2, side), backbone="resnet18", weights="random:0",
            image_size=side, device=device, precision="fp32", options=options, workers=4,
            reports=tmp_path / "reports", cache=tmp_path / "cache",
        )  # fmt: skip
    assert np.isfinite(_losses(run)).all()
    facts = json.loads((run.folder / "run.json").read_text())
    if device != "cpu":
        assert "out of memory: each batch is now cut into 2 parts" in caplog.text
        assert facts["cost"]["parts"] > 1


def test_killed_and_resumed_it_says_what_an_uninterrupted_run_says(
    device: str, tmp_path: Path
) -> None:
    """Some of a card's sums have no fixed order, so it is so within a tolerance."""
    assert finetune_in_a_process(tmp_path / "whole", -1, device) == 15
    assert finetune_in_a_process(tmp_path / "killed", 8, device) == -signal.SIGKILL
    assert list((tmp_path / "killed").glob("*/.*.partial/test/checkpoint.pt"))
    assert finetune_in_a_process(tmp_path / "killed", -1, device) == 15 - 7
    whole, killed = (_probabilities(tmp_path / name) for name in ("whole", "killed"))
    assert whole.shape == killed.shape == (21, 3)
    np.testing.assert_allclose(killed, whole, rtol=0, atol=0.05)
