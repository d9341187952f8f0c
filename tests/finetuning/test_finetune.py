from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import coloured, small_backbone

from featcache.errors import CacheMissing, CacheRefused, RecipeError, UnknownName
from featcache.extraction.extract import extract, fill_cache
from featcache.extraction.registry import open_backbone
from featcache.finetuning.data import Pixels
from featcache.finetuning.finetune import finetune
from featcache.finetuning.options import Options
from featcache.finetuning.serialization import load_network
from featcache.fitting.evaluate import evaluate
from featcache.fitting.pipeline import make_classifier
from featcache.reporting.bundle import read_facts
from featcache.reporting.compare import compare
from featcache.reporting.comparison import write_comparison
from featcache.reporting.schema import Run

from .killing import finetune_in_a_process

FEW = Options(epochs=2, freeze_epochs=1, batch_size=8, lr=1e-2)
NET = {"backbone": "resnet18", "weights": "random:0", "image_size": 32}


def tune(tmp_path: Path, **options: object) -> Run:
    given = {"backbone": small_backbone(), "options": FEW, "device": "cpu", **options}
    images = given.pop("images", None) or coloured()
    return finetune(
        images, reports=tmp_path / "reports", cache=tmp_path / "cache", workers=1, **given
    )


def predictions(run: Run) -> list[dict[str, str]]:
    with (run.folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_beside_those_of_cached_features(tmp_path: Path) -> None:
    run = tune(tmp_path)
    cached = extract(coloured(), backbone=small_backbone(), cache=tmp_path / "cache", device="cpu")
    fitted = compare(cached, head="logreg", reports=tmp_path / "reports").best
    assert run.rows == fitted.rows
    assert (run.split, run.tested) == (fitted.split, fitted.tested) == ("test split", 21)
    assert run.name == "small.concat.mlp.finetuned"
    assert run.folder.name.startswith("small.concat.mlp.finetuned.")
    table = write_comparison(tmp_path / "reports")
    assert {row["head"] for row in table.rows()} == {"mlp.finetuned", "logreg"}
    assert sum(one.p is None for one in table) == 1  # the other was tested against the best
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["stage"] == "finetuned"
    assert facts["cost"]["gpu_seconds"] is None
    assert len(facts["epoch_seconds"][0]) == 2
    assert 0 < sum(facts["epoch_seconds"][0]) <= run.fit_seconds
    assert facts["cost"]["wall_seconds"] == pytest.approx(run.fit_seconds)
    fold = json.loads((run.folder / "metrics.json").read_text())["folds"][0]
    assert len(fold["history"]["train_loss"]) == len(fold["history"]["val_accuracy"]) == 2
    assert not list(run.folder.parent.glob(".*partial"))


def test_the_same_again_is_read_and_another_option_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tune(tmp_path)
    first = predictions(run)
    assert predictions(tune(tmp_path, again=True)) == first
    monkeypatch.setattr("featcache.finetuning.finetune.Trainer", None)
    assert tune(tmp_path).created
    with pytest.raises(TypeError):
        tune(tmp_path, seed=1)
    with pytest.raises(TypeError):
        tune(tmp_path, options=Options(epochs=2, freeze_epochs=0))


def test_test_rows_are_looked_at_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[set[int]] = []
    train, test = Pixels.train_batches, Pixels.eval_batches

    def spy_train(self, rows, draws, batches):
        looked.append(set(rows.tolist()))
        return train(self, rows, draws, batches)

    def spy_test(self, rows, keep=False):
        looked.append(set(rows.tolist()))
        return test(self, rows, keep)

    monkeypatch.setattr(Pixels, "train_batches", spy_train)
    monkeypatch.setattr(Pixels, "eval_batches", spy_test)
    tune(tmp_path)
    tested = set(np.flatnonzero(coloured().split == "test").tolist())
    assert [rows & tested for rows in looked[:-1]] == [set()] * (len(looked) - 1)
    assert looked[-1] == tested


def test_folds(tmp_path: Path) -> None:
    run = tune(tmp_path, images=coloured(48, split=False), folds=3)
    assert (run.split, run.tested) == ("3 folds", 48)
    assert {row["fold"] for row in predictions(run)} == {"fold1", "fold2", "fold3"}
    assert len(json.loads((run.folder / "run.json").read_text())["best_epoch"]) == 3


def test_settings_and_devices_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="end to end"):
        tune(tmp_path, fusion="bilinear")
    with pytest.raises(UnknownName):
        tune(tmp_path, device="tpu")
    with pytest.raises(RecipeError, match="fp16"):
        tune(tmp_path, precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="no device cuda"):
            tune(tmp_path, device="cuda")
    assert not (tmp_path / "reports").exists()


def test_without_accelerate_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(Exception, match="pip install") as caught:
        tune(tmp_path)
    assert "accelerate" in str(caught.value)


def test_warm_start(tmp_path: Path) -> None:
    with pytest.raises(CacheMissing, match=r"--backbone small .*--image-size 8"):
        tune(tmp_path, warm_start=True)
    fill_cache(coloured(), backbone=small_backbone(), cache=tmp_path / "cache", device="cpu")
    options = Options(epochs=6, freeze_epochs=5, batch_size=8, lr=1e-2)
    run = tune(tmp_path, warm_start=True, options=options)
    history = json.loads((run.folder / "metrics.json").read_text())["folds"][0]["history"]
    assert len(history["train_loss"]) == len(history["val_loss"]) == 6
    assert history["train_loss"][4] < history["train_loss"][0]
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["settings"]["warm_start"] is True
    assert facts["cost"]["extraction_seconds"] > 0


def test_all_frozen_the_head_sees_what_the_cache_holds(tmp_path: Path) -> None:
    """With un-augmented images, frozen epochs on pixels and on the cache agree."""
    options = Options(
        epochs=2, freeze_epochs=2, batch_size=40, lr=1e-2, crop_scale=1, flip=False, jitter=0,
        validation=0,
    )  # fmt: skip
    extracted = {"cache": tmp_path / "cache", "device": "cpu", "precision": "fp32"}
    fill_cache(coloured(), backbone=small_backbone(), **extracted)
    settings = {"head.dropout": 0.0}
    curves = []
    for warm in (False, True):
        run = tune(tmp_path, warm_start=warm, options=options, settings=settings)
        metrics = json.loads((run.folder / "metrics.json").read_text())
        curves.append(metrics["folds"][0]["history"]["train_loss"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("tuned")
    options = Options(epochs=1, freeze_epochs=0, batch_size=16, ema=0.5)
    return folder, tune(folder, images=coloured(36, 32), options=options, **NET)


def test_the_bundle_is_the_network_that_was_scored(tuned: tuple[Path, Run]) -> None:
    _, run = tuned
    facts = read_facts(run.folder / "model")
    assert facts["kind"] == "finetuned"
    assert facts["trained_on"]["rows"] == 24
    network = load_network(run.folder / "model", facts)
    backbone = open_backbone("resnet18", weights=str(run.folder))
    assert backbone.preprocess.crop == 32  # as it was tuned, without being told
    images = coloured(36, 32)
    rows = np.flatnonzero(images.split == "test")
    pixels = Pixels(images, [backbone.preprocess], torch.device("cpu"), 1)
    with torch.inference_mode():
        proba = network(*next(pixels.eval_batches(rows))).double().softmax(1).numpy()
    saved = {row["id"]: row for row in predictions(run)}
    expected = [[float(saved[images.ids[r]][f"p_{c}"]) for c in facts["classes"]] for r in rows]
    np.testing.assert_allclose(proba, expected, atol=1e-5)


def test_tuned_weights_load_under_torchvisions_own_names(tuned: tuple[Path, Run]) -> None:
    from torchvision.models import get_model

    state = load_file(tuned[1].folder / "model" / "weights" / "resnet18.safetensors")
    network = get_model("resnet18", weights=None)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert not unexpected


def test_features_of_tuned_weights_say_what_trained_them(tuned: tuple[Path, Run]) -> None:
    folder, run = tuned
    images, cache = coloured(36, 32), folder / "cache"
    features = extract(
        images, backbone="resnet18", weights=str(run.folder), cache=cache, device="cpu"
    )
    seen = set(images.sha256[images.split == "train"].tolist())
    (path,) = (cache / "colours").glob("resnet18.tuned.*.h5")
    with h5py.File(path) as file:
        assert {row.tobytes().hex() for row in file["trained_on"][:]} == seen
    assert features.trained_on == (frozenset(seen),)
    # A copy of the weight file tells the same.
    copy = folder / "copy.safetensors"
    copy.write_bytes((run.folder / "model" / "weights" / "resnet18.safetensors").read_bytes())
    assert open_backbone("resnet18", weights=str(copy)).trained_on == seen
    # The other images are fair to test on; those are not, in folds or by another tuning.
    evaluate(make_classifier(head="logreg"), features)
    with pytest.raises(CacheRefused):
        evaluate(make_classifier(head="logreg"), features, folds=3)
    with pytest.raises(CacheRefused, match="was fine-tuned on"):
        tune(folder, images=images, backbone="resnet18", weights=str(run.folder), folds=3)


def test_another_backbone_is_not_in_the_run(tuned: tuple[Path, Run]) -> None:
    from featcache.errors import WeightsError

    with pytest.raises(WeightsError, match="one that fine-tuned mobilenet_v2"):
        open_backbone("mobilenet_v2", weights=str(tuned[1].folder))


@pytest.mark.slow  # three interpreters
def test_sigkill_and_the_same_command_again(tmp_path: Path) -> None:
    assert finetune_in_a_process(tmp_path / "whole") == 0
    assert finetune_in_a_process(tmp_path / "killed", kill=8) == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("*/*/run.json"))
    assert list((tmp_path / "killed").glob("*/.*.partial/test/checkpoint.pt"))
    assert finetune_in_a_process(tmp_path / "killed") == 0
    files = [
        next((tmp_path / reports).glob(f"*/*/{name}")).read_bytes()
        for name in ("predictions.csv", "model/network.safetensors", "model/weights/b.safetensors")
        for reports in ("whole", "killed")
    ]
    assert files[0] == files[1]
    assert files[2] == files[3]
    assert files[4] == files[5]
    assert not list((tmp_path / "killed").glob("*/.*.partial"))


def test_half_precision_trains_and_scores(tmp_path: Path) -> None:
    run = tune(tmp_path, precision="bf16", options=Options(epochs=3, freeze_epochs=1, ema=0.5))
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["settings"]["precision"] == "bf16"
    assert 0 <= run.metric("accuracy") <= 1


def test_the_order_of_the_backbones_makes_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [small_backbone("b", dim=4), small_backbone("a", seed=1)]
    options = Options(epochs=2, freeze_epochs=2, batch_size=8)
    fill_cache(coloured(), backbone=both, cache=tmp_path / "cache", device="cpu")
    run = tune(tmp_path, backbone=both, options=options, warm_start=True)
    assert run.backbones == ("a", "b")
    monkeypatch.setattr("featcache.finetuning.finetune.Trainer", None)
    again = tune(tmp_path, backbone=both[::-1], options=options, warm_start=True)
    assert again.folder == run.folder
