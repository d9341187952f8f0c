"""A loaded model says of images what the evaluation said of them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packages import EACH_HEAD, needs_xgboost
from PIL import Image
from safetensors.torch import save_file
from tiny import SIDE, tiny_backbone
from torchvision.models import get_model

from featcache.errors import DataError, WeightsError
from featcache.extraction.extract import extract
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.grid import Candidate, fit_candidate
from featcache.fitting.splits import make_folds
from featcache.prediction.export import copy_model
from featcache.prediction.model import Model, load_model
from featcache.reporting.bundle import FACTS
from featcache.reporting.compare import compare
from featcache.reporting.run_folder import pipeline_writer

from .conftest import CLASSES, Made, draw, make

QUICK = {
    "mlp.epochs": 2, "attention.dim": 8, "gated.dim": 8, "hadamard.dim": 8,
    "forest.n_estimators": 5, "xgboost.n_estimators": 5, "bilinear.width": 16,
}  # fmt: skip


def _open(made: Made, **options: object) -> Model:
    return load_model(made.run, backbone=made.backbones, device="cpu", **options)


def _told(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _same_as_told(made: Made, model: Model, tolerance: float = 1e-5) -> None:
    told = _told(made.run)
    paths = [str(made.images / row["id"]) for row in told]
    assert model.predict(paths).tolist() == [row["pred"] for row in told]
    if "p_cat" in told[0]:
        proba = [[float(row[f"p_{name}"]) for name in CLASSES] for row in told]
        np.testing.assert_allclose(model.predict_proba(paths), proba, atol=tolerance, rtol=0)


# Each fusion and each head in a pair that no other covers; all pairs are in the slow test.
@pytest.mark.parametrize(
    ("fusion", "head"),
    [("concat", "svm"), ("attention", "mlp"), ("gated", "mlp"),
     pytest.param("stack", "xgboost", marks=needs_xgboost),
     ("vote", "ridge"), ("bilinear", "knn"), ("sum", "forest"), ("hadamard", "nearest_mean")],
)  # fmt: skip
def test_predictions_are_those_of_the_evaluation(fusion: str, head: str, tmp_path: Path) -> None:
    made = make(tmp_path, fusion, head, settings=QUICK)
    _same_as_told(made, _open(made))


@pytest.mark.slow
@pytest.mark.parametrize("head", EACH_HEAD)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_so_they_are_for_every_fusion_and_head(fusion: str, head: str, tmp_path: Path) -> None:
    made = make(tmp_path, fusion, head, settings=QUICK)
    _same_as_told(made, _open(made))


def test_the_batch_size_changes_nothing(made: Made) -> None:
    """Every pass is filled up to the batch size; between sizes only the last bits may move."""
    for batch_size in (1, 7, 64):
        _same_as_told(made, _open(made, batch_size=batch_size))


def test_a_moved_copy_says_the_same(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.run / "model", tmp_path / "elsewhere" / "m")
    _same_as_told(made, load_model(copy, backbone=made.backbones, device="cpu"))


def test_with_folds_the_model_is_fitted_on_all_rows(tmp_path: Path) -> None:
    made = make(tmp_path, folds=3)
    model = _open(made)
    assert model.facts["trained_on"] == {"rows": 90, "what": "all rows, refitted"}
    labels = model.predict(made.images)
    assert len(labels) == 90


def test_on_a_test_split_it_is_the_one_that_was_scored(made: Made) -> None:
    facts = _open(made).facts
    assert facts["trained_on"] == {"rows": 60, "what": "the training rows of the test split"}


def test_pixels_files_and_folders_are_all_images(made: Made) -> None:
    model = _open(made)
    path = next((made.images / "test" / "dog").iterdir())
    pixels = np.asarray(Image.open(path))
    for images in (path, str(path), [path], pixels, [pixels], str(path.parent / f"{path.stem}*")):
        np.testing.assert_array_equal(model.predict_proba(images), model.predict_proba(path))
    assert set(model.predict(path.parent)) <= set(CLASSES)
    assert model.classes == list(CLASSES)


def test_a_class_that_was_not_trained_on_has_probability_0(tmp_path: Path) -> None:
    from featcache.reporting.compare import compare

    from .conftest import draw

    images = draw(tmp_path / "shapes", 90)
    shutil.rmtree(images / "train" / "cat")
    backbone = tiny_backbone()
    features = extract(images, backbone=backbone, cache=tmp_path / "cache")
    run = compare(features, head="logreg", reports=tmp_path / "reports").best
    model = load_model(run.folder, backbone=backbone, device="cpu")
    proba = model.predict_proba(images / "test")
    assert (proba[:, 0] == 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)


def test_images_that_can_t_be_read_are_told_in_their_place(made: Made, tmp_path: Path) -> None:
    good = next((made.images / "test" / "cat").iterdir())
    (tmp_path / "bad.png").write_text("no image")
    paths = [str(tmp_path / "bad.png"), str(good), str(tmp_path / "gone.png")]
    model = _open(made, batch_size=2)
    heard: list[tuple[int, int]] = []
    said = list(model.stream(paths, lambda done, total: heard.append((done, total))))
    assert [one.row for one in said] == [0, 1, 2]
    assert [bool(one.problem) for one in said] == [True, False, True]
    assert heard[-1] == (3, 3)
    with pytest.raises(DataError, match=r"2 of 3.*bad\.png"):
        model.predict(paths)


def test_other_weights_are_refused(made: Made) -> None:
    others = [tiny_backbone("tiny", dim=6, seed=5), made.backbones[1]]
    with pytest.raises(WeightsError, match="tiny with weights of sha256 seed 0"):
        load_model(made.run, backbone=others)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda facts: facts["backbones"][0].update(precision="fp16"), "agree with its key"),
        (lambda facts: facts["backbones"][0]["preprocess"].update(mean=[0, 0, 0]), "agree"),
        (lambda facts: facts["backbones"][0].pop("layer"), "damaged"),
        (lambda facts: facts["backbones"][0].update(key=None), "came from no cache"),
        (lambda facts: facts["backbones"][0].update(dim=7), "wide"),
        (lambda facts: facts.update(format=99), "format 99"),
        (lambda facts: facts.update(classes="cat"), "classes"),
        (lambda facts: facts.update(kind="pickle"), "pickle"),
        (lambda facts: facts["files"].update({"../../x": {"sha256": "", "bytes": 1}}), "outside"),
        (lambda facts: facts["files"].update({"gone": {"sha256": "", "bytes": 1}}), "missing"),
    ],
)
def test_a_changed_model_is_refused(
    made: Made, tmp_path: Path, change: Callable[[dict], None], part: str
) -> None:
    folder = shutil.copytree(made.run / "model", tmp_path / "m")
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    del facts["sha256"]  # as if whoever changed it had made that fit, too
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(DataError, match=part):
        load_model(folder, backbone=made.backbones, device="cpu")


def test_a_damaged_file_is_refused(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.run / "model", tmp_path / "m")
    with (folder / "pipeline.skops").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    with pytest.raises(DataError, match=r"not the file that model\.json lists"):
        load_model(folder, backbone=made.backbones)


def test_vectors_stored_in_half_are_used_as_they_were_stored(made: Made) -> None:
    """What was fitted on rounded vectors gets rounded vectors."""
    model = _open(made)
    path = next((made.images / "test" / "cat").iterdir())
    exact = model.predict_proba(path)
    model._classify._stored = ["float16", "float16"]  # type: ignore[union-attr]
    rounded = model.predict_proba(path)
    assert 0 < np.abs(rounded - exact).max() < 1e-2


def test_memory_is_bounded_by_batches(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a few batches of files are open ahead of what was asked for."""
    from featcache.prediction import inputs

    read: list[int] = []
    plain = inputs.as_images

    def counting(contents: list[object]) -> object:
        images = plain(contents)

        def one(row: int) -> object:
            read.append(row)
            return images.read(row)

        from dataclasses import replace

        return replace(images, read=one)

    monkeypatch.setattr("featcache.prediction.model.as_images", counting)
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    stream = _open(made, batch_size=4, workers=2).stream([pixels] * 200)
    next(stream)
    assert len(read) <= 20
    stream.close()


def test_a_model_takes_its_blocks_in_its_own_order(made: Made, tmp_path: Path) -> None:
    """Models that were fitted before backbones had one order have them in another."""
    features = extract(made.images, backbone=made.backbones, cache=tmp_path / "cache")
    assert features.names == ("other", "tiny")
    older = features.select(["tiny", "other"])
    candidate = Candidate(older.names, "concat", "logreg")
    pipeline, folds = fit_candidate(candidate, older), make_folds(older, 3)
    (folder := tmp_path / "model").mkdir()
    pipeline_writer(pipeline, candidate, older, folds, 0, {}, candidate.name)(folder)
    paths = [str(made.images / id_) for id_ in older.ids.tolist()]
    np.testing.assert_allclose(
        load_model(folder, backbone=made.backbones, device="cpu").predict_proba(paths),
        pipeline.predict_proba(older.X), atol=1e-5,
    )  # fmt: skip


# A bundle on its own, with weights inside or without.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run on a file of weights and on a layer of another; its images; the weights' folder."""
    root = tmp_path_factory.mktemp("standalone")
    weights = root / "weights"
    weights.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("squeezenet1_1", "shufflenet_v2_x0_5"):
            torch.save(get_model(name).state_dict(), weights / f"{name}.pth")
    images = draw(root / "shapes", 45)
    options = {"weights_dir": weights, "image_size": 32, "cache": root / "cache"}
    from featcache.store.features import join

    parts = [
        extract(images, backbone="squeezenet1_1", **options),
        extract(images, backbone="shufflenet_v2_x0_5", layer="stage3", **options),
    ]
    run = compare(join(parts), head="logreg", singles=False, reports=root / "reports").best
    return run.folder, images, weights


def test_it_labels_where_there_are_no_weights(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, images, weights = trained
    copy = copy_model(run, tmp_path / "alone", standalone=True, weights_dir=weights)
    elsewhere = shutil.move(copy, tmp_path / "machine" / "model")
    with pytest.raises(WeightsError):
        load_model(run, device="cpu")
    np.testing.assert_allclose(
        load_model(elsewhere, device="cpu").predict_proba(images / "test"),
        load_model(run, weights_dir=weights, device="cpu").predict_proba(images / "test"),
        atol=1e-6,
    )
    again = copy_model(elsewhere, tmp_path / "second", standalone=True)
    assert (again / "weights").is_dir()
    assert len(load_model(again, device="cpu").predict(images / "test")) == 15


def test_without_them_it_needs_the_weights_at_hand(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, images, weights = trained
    copy = copy_model(run, tmp_path / "plain")
    assert not (copy / "weights").exists()
    with pytest.raises(WeightsError):
        load_model(copy)
    assert len(load_model(copy, weights_dir=weights, device="cpu").predict(images / "test")) == 15


def test_weights_inside_are_checked_too(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:  # fmt: skip
    run, _, weights = trained
    copy = copy_model(run, tmp_path / "alone", standalone=True, weights_dir=weights)
    inside = next((copy / "weights").iterdir())
    save_file({"a": torch.zeros(1)}, inside)
    with pytest.raises(DataError, match=r"not the file that model\.json lists"):
        load_model(copy)


def test_nothing_is_overwritten_and_nothing_half_is_left(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, _, weights = trained
    with pytest.raises(DataError, match="there already"):
        copy_model(run, tmp_path)
    with pytest.raises(WeightsError):
        copy_model(run, tmp_path / "out", standalone=True)
    assert list(tmp_path.iterdir()) == []
    copy = copy_model(run, tmp_path / "out", weights_dir=weights)
    facts = json.loads((copy / "model.json").read_text())
    assert facts == json.loads((run / "model" / "model.json").read_text())
