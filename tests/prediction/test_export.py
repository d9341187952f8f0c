"""The ONNX graph says what ours says, in any batch size; other steps are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from packages import needs_xgboost
from PIL import Image
from sklearn.svm import SVC

from featcache.errors import DataError, FeatcacheError, UnknownName
from featcache.fitting.pipeline import make_classifier
from featcache.prediction import export
from featcache.prediction.export import TOLERANCE, copy_model, export_onnx
from featcache.prediction.model import load_model
from featcache.prediction.onnx_graph import as_module
from featcache.store.features import Features

from .conftest import Made, make

SETTINGS = [
    ("concat", "mlp", {"mlp.epochs": 2}, ""),
    ("concat", "logreg", {"concat.scale": "l2"}, ""),
    ("concat", "logreg", {"concat.scale": "none", "concat.pca": 2}, ""),
    ("concat", "nearest_mean", {"concat.pca": 3}, ""),
    ("attention", "mlp", {"mlp.epochs": 2, "attention.dim": 8}, ""),
    ("gated", "mlp", {"mlp.epochs": 2, "gated.dim": 8}, ""),
    ("hadamard", "mlp", {"mlp.epochs": 2, "hadamard.dim": 8}, ""),
    ("hadamard", "lda", {"hadamard.epochs": 2, "hadamard.dim": 8}, ""),
    ("attention", "logreg", {"attention.epochs": 2, "attention.dim": 8}, ""),
    ("gated", "nearest_mean", {"gated.epochs": 2, "gated.dim": 8}, ""),
    ("concat", "lda", {}, ""),
    ("concat", "logreg", {}, "anova:4"),
    ("concat", "logreg", {}, "variance:4"),
    ("concat", "mlp", {"mlp.epochs": 2}, "pca:3"),
]


def _features(classes: int = 3) -> Features:
    rng = np.random.default_rng(0)
    codes = np.arange(90) % classes
    X = rng.normal(size=(90, 10)).astype(np.float32)
    X[:, 0] += codes
    empty = np.full(90, "")
    return Features(
        X=X, y=np.array(["cat", "dog", "owl"])[codes], ids=np.array([f"{i}" for i in range(90)]),
        sha256=empty, groups=empty, split=empty, blocks=(6, 4), names=("a", "b"), keys=("k", "l"),
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("fusion", "head", "settings", "select"), SETTINGS)
def test_modules_say_what_the_pipeline_says(
    fusion: str, head: str, settings: dict[str, object], select: str, classes: int
) -> None:
    features = _features(classes)
    made = make_classifier(
        fusion, head, blocks=features.blocks, settings=settings, select=select
    ).fit(features.X, features.y)
    module = as_module(made, sorted(set(features.y.tolist())))
    with torch.inference_mode():
        found = module(torch.from_numpy(features.X)).numpy()
    np.testing.assert_allclose(found, made.predict_proba(features.X), atol=1e-5)


def test_a_class_that_was_not_trained_on_gets_0() -> None:
    features = _features(2)
    made = make_classifier("concat", "logreg").fit(features.X, features.y)
    with torch.inference_mode():
        found = as_module(made, ["ant", "cat", "dog", "owl"])(torch.from_numpy(features.X))
    assert (found[:, [0, 3]] == 0).all()
    np.testing.assert_allclose(found[:, 1:3], made.predict_proba(features.X), atol=1e-5)


@pytest.mark.parametrize(
    ("fusion", "head", "name"),
    [("sum", "logreg", "SumFusion"), ("concat", "svm", "SVMHead"), ("vote", "logreg", "VoteFusion"),
     ("concat", "ridge", "RidgeHead"),
     pytest.param("concat", "xgboost", "XGBHead", marks=needs_xgboost)],
)  # fmt: skip
def test_what_can_t_be_written_is_named_with_what_can(fusion: str, head: str, name: str) -> None:
    features = _features()
    made = make_classifier(fusion, head, blocks=features.blocks).fit(features.X, features.y)
    with pytest.raises(UnknownName, match=name) as caught:
        as_module(made, ["cat", "dog", "owl"])
    assert "Fusions that can: concat, attention, gated, hadamard;" in caught.value.remedy
    assert "heads that can: mlp, logreg, lda, nearest_mean." in caught.value.remedy


def _tiny_pixels(made: Made) -> tuple[list[str], np.ndarray]:
    paths = sorted((made.images / "test").rglob("*.png"))[:7]
    pixels = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    return [str(path) for path in paths], pixels  # (n, 3, h, w)


@pytest.mark.parametrize(("fusion", "head"), [("concat", "logreg"), ("attention", "mlp")])
def test_onnxruntime_says_what_the_model_says(
    fusion: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, fusion, head, settings={"mlp.epochs": 2})
    _with_own_backbones(monkeypatch, made)
    if fusion == "attention" and torch.__version__.startswith("2.6."):
        with pytest.raises(FeatcacheError, match=r"a newer torch than 2\.6"):
            export_onnx(made.run, tmp_path / "m.onnx")
        pytest.skip("torch 2.6 can't export attention for any number of images, and says so")
    done = export_onnx(made.run, tmp_path / "m.onnx")
    assert done.difference <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    paths, pixels = _tiny_pixels(made)
    ours = load_model(made.run, backbone=made.backbones, device="cpu").predict_proba(paths)
    for count in (1, 3, 7):
        (theirs,) = session.run(None, {"pixels": pixels[:count]})
        np.testing.assert_allclose(theirs, ours[:count], atol=TOLERANCE)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["cat", "dog", "owl"]
    assert json.loads(told["preprocess"])["pixels"]["crop"] == pixels.shape[-1]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_a_graph_that_says_otherwise_is_not_left_behind(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_own_backbones(monkeypatch, made)
    monkeypatch.setattr(export, "as_module", lambda *_: torch.nn.Linear(10, 3).eval())
    with pytest.raises(FeatcacheError, match="differ from ours"):
        export_onnx(made.run, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(made: Made, tmp_path: Path) -> None:
    """As `copy_model` does, with the same words."""
    target = tmp_path / "m.onnx"
    target.write_text("mine")
    with pytest.raises(DataError, match="is there already") as onnx_said:
        export_onnx(made.run, target)
    with pytest.raises(DataError, match="is there already") as folder_said:
        copy_model(made.run, target)
    assert str(onnx_said.value) == str(folder_said.value)
    assert "remove it" in onnx_said.value.remedy
    assert target.read_text() == "mine"


def test_a_missing_library_gets_its_pip_line(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(FeatcacheError, match=r"needs onnx, not") as caught:
        export_onnx(made.run, tmp_path / "m.onnx")
    assert 'pip install "featcache[onnx]"' in caught.value.remedy


def _with_own_backbones(monkeypatch: pytest.MonkeyPatch, made: Made) -> None:
    """The tiny networks are not registered: hand them over."""
    plain = export.open_backbones_of
    monkeypatch.setattr(
        export, "open_backbones_of", lambda *args, **how: plain(*args, own=made.backbones, **how)
    )


def test_svc_alone_is_no_head_here() -> None:
    features = _features()
    with pytest.raises(UnknownName, match="SVC"):
        as_module(SVC().fit(features.X, features.y), ["cat", "dog", "owl"])
