"""A head and a fusion that nobody has heard of: one class and one line each, and all goes by name.

The toys pretend to be modules of featcache's, as a new head or fusion would be.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from stored import blobs, store
from tiny import SIDE, tiny_backbone
from torch import nn

import featcache as fc
from featcache.cli.main import run
from featcache.errors import RecipeError, UnknownName
from featcache.extraction.extract import extract
from featcache.finetuning.network import build, make_head
from featcache.fitting.blocks import resolve_blocks, slices
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.fusions.learned import LearnedFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.networks import linear
from featcache.fitting.out_of_core import by_blocks
from featcache.fitting.pipeline import describe, make_classifier
from featcache.fitting.registry import LazyClass
from featcache.images.manifest import from_arrays
from featcache.prediction.model import load_model
from featcache.prediction.onnx_graph import as_module


class ToyHead(ClassifierMixin, BaseEstimator):
    """Least squares on labels as 0 and 1, made probabilities by a softmax."""

    search_space: ClassVar = {"sharpness": ("log", 0.1, 10.0)}

    def __init__(self, sharpness=1.0, random_state=0):
        self.sharpness = sharpness
        self.random_state = random_state

    def fit(self, X, y):
        X, y = validate_data(self, X, y)
        return self._fit(X.T @ X, X.T @ self._one_hot(y))

    def fit_stream(self, stream, y, groups=None):
        self.n_features_in_, hot = stream.width, self._one_hot(y)
        parts = [(block.T @ block, block.T @ hot[rows]) for rows, block in stream.blocks()]
        return self._fit(*map(sum, zip(*parts, strict=True)))

    def _one_hot(self, y):
        self.classes_, codes = np.unique(y, return_inverse=True)
        return np.eye(len(self.classes_))[codes]

    def _fit(self, gram, target):
        self.coef_ = np.linalg.solve(gram + np.eye(len(gram)), target) * self.sharpness
        return self

    def predict_proba(self, X):
        check_is_fitted(self)
        scores = np.exp(np.float64(validate_data(self, X, reset=False) @ self.coef_))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def as_module(self):
        return linear(self.coef_.T, np.zeros(len(self.classes_)))


class ToyFusion(TransformerMixin, BaseEstimator):
    """The blocks side by side, each divided by one number."""

    search_space: ClassVar = {"power": [1.0, 2.0]}

    def __init__(self, blocks=None, power=2.0):
        self.blocks = blocks
        self.power = power

    def fit(self, X, y=None):
        X = validate_data(self, X)
        return self._fit(self._sizes(X))

    def fit_stream(self, stream, y=None, groups=None):
        self.n_features_in_ = stream.width
        return self._fit(by_blocks(self._sizes, stream))

    def _sizes(self, X):
        parts = slices(resolve_blocks(self.blocks, X.shape[1]))
        return np.stack([(np.abs(X[:, part]) ** self.power).mean(axis=1) for part in parts], axis=1)

    def _fit(self, sizes):
        by_block = sizes.mean(axis=0) ** (1 / self.power)
        self.scale_ = np.repeat(by_block, resolve_blocks(self.blocks, self.n_features_in_))
        return self

    def transform(self, X):
        check_is_fitted(self)
        return validate_data(self, X, reset=False) / np.float32(self.scale_)

    def as_module(self):
        return linear(np.diag(1 / self.scale_), np.zeros(len(self.scale_)))


class Blend(nn.Module):
    """A weighted sum of projected blocks."""

    def __init__(self, blocks, dim):
        super().__init__()
        self.blocks, self.width = list(blocks), dim
        self.project = nn.ModuleList(nn.Linear(block, dim) for block in blocks)
        self.share = nn.Parameter(torch.zeros(len(self.blocks)))

    def forward(self, x):
        parts = zip(
            self.project, torch.split(x, self.blocks, dim=1), self.weights(x).T, strict=True
        )
        return sum(project(part) * weight[:, None] for project, part, weight in parts)

    def weights(self, x):
        return self.share.softmax(0).expand(len(x), -1)


class ToyLearned(LearnedFusion):
    """A fusion with a torch module, which the MLP can train along with itself."""

    search_space: ClassVar = {"dim": [4, 8]}
    joint: ClassVar = {"dim": "dim"}

    def __init__(
        self, blocks=None, dim=4, epochs=2, batch_size=64, lr=3e-4, weight_decay=1e-4,
        label_smoothing=0.1, patience=5, validation=0.1, random_state=0,
    ):  # fmt: skip
        self.blocks = blocks
        self.dim = dim
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.validation = validation
        self.random_state = random_state

    def module(self, blocks):
        return Blend(blocks, self.dim)


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    for kind, package, registered, name in (
        (ToyHead, "heads", HEADS, "toy"),
        (ToyFusion, "fusions", FUSIONS, "toy"),
        (ToyLearned, "fusions", FUSIONS, "learned-toy"),
    ):
        module = ModuleType(f"featcache.fitting.{package}.{kind.__name__.lower()}")
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(kind, "__module__", module.__name__)
        # The one line of each.
        monkeypatch.setitem(registered, name, LazyClass(f"{module.__name__}:{kind.__name__}"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a cache of 240 images and two backbones."""
    monkeypatch.chdir(tmp_path)
    X, y = blobs(240)
    store(tmp_path / "cache", X, y, (6, 4), split=["train", "test", "train"] * 80)
    return tmp_path


def test_both_compare_by_name_with_the_others(features, tmp_path):
    compared = fc.compare(
        features, fusion=["concat", "toy", "stack"], head=["toy", "logreg"], folds=3,
        reports=tmp_path,
    )  # fmt: skip
    names = {run.name for run in compared.runs}
    both = "+".join(features.names)
    assert {f"{both}.toy.toy", f"{both}.toy.logreg", f"{both}.stack.toy"} <= names
    assert f"{features.names[0]}.concat.toy" in names
    assert all(run.metric("accuracy") > 0.8 for run in compared.runs)


def test_describe_says_their_names():
    for fusion in ("toy", "stack", "concat", "learned-toy"):
        assert describe(make_classifier(fusion, "toy")) == (fusion, "toy")
    assert describe(make_classifier("learned-toy", "mlp")) == ("learned-toy", "mlp")


def test_the_command_line_fits_and_tunes(here, capsys):
    options = ["--fusion", "toy", "--head", "toy", "--set", "fusion.power=1"]
    assert run(["fit", *options, "--tune", "4"]) == 0
    assert "net0+net1.toy.toy.tuned-4" in capsys.readouterr().out
    (folder,) = here.glob("reports/toy/net0*")
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["fusion"], facts["head"]) == ("toy", "toy")
    (fold,) = json.loads((folder / "metrics.json").read_text())["folds"]
    assert fold["tuned"]["tries"] == 4
    assert set(fold["tuned"]["chosen"]) <= {"head__sharpness"}  # the power is given
    assert run(["report", str(folder)]) == 0
    assert "net0+net1.toy.toy.tuned-4" in (folder / "report.html").read_text()


def test_what_is_searched_is_their_own_space():
    made = make_classifier("toy", "toy", tune=3)
    assert set(made.space) == {"fusion__power", "head__sharpness"}
    assert set(make_classifier("vote", "toy", tune=3).space) == {"fusion__head__sharpness"}
    joint = make_classifier("learned-toy", "mlp", tune=3)
    assert joint.space["head__dim"] == [4, 8]


def test_rows_that_stay_on_disk(here):
    assert run(["fit", "--fusion", "toy", "--head", "toy", "--memory", "1KB", "-q"]) == 0
    (path,) = here.glob("reports/toy/net0*/run.json")
    assert json.loads(path.read_text())["streamed"] is True


@pytest.mark.parametrize(
    ("kind", "name"), [(ToyHead, "the head toy"), (ToyFusion, "the fusion toy")]
)
def test_without_a_method_for_that_they_are_refused_by_name(here, kind, name, monkeypatch, capsys):
    monkeypatch.delattr(kind, "fit_stream")
    assert run(["fit", "--fusion", "toy", "--head", "toy", "--memory", "1KB", "-q"]) == 2
    said = capsys.readouterr().err
    assert f"{name} needs all rows in memory" in said
    assert ("every fusion" in said) == (kind is ToyHead)


@pytest.mark.parametrize(
    ("fusion", "head"), [("toy", "toy"), ("stack", "toy"), ("learned-toy", "mlp"),
                         ("learned-toy", "toy")],
)  # fmt: skip
def test_a_saved_model_predicts(fusion, head, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = rng.integers(0, 90, (60, SIDE, SIDE, 3))
    pixels[:, :, :, 0] += 120 * labels[:, None, None]
    pixels = pixels.astype(np.uint8)
    images = from_arrays(
        "shades", pixels, ids=[f"{i:02d}" for i in range(60)],
        labels=np.array(["dark", "red"])[labels].tolist(),
    )  # fmt: skip
    backbones = [tiny_backbone("tiny", dim=6), tiny_backbone("other", dim=4, seed=1)]
    features = extract(images, backbone=backbones, cache=tmp_path / "cache", precision="fp32")
    best = fc.compare(
        features, fusion=fusion, head=head, folds=2, singles=False, reports=tmp_path / "reports"
    ).best
    model = load_model(best.folder, backbone=backbones, device="cpu")
    found = model.predict_proba(list(pixels))
    expected = make_classifier(fusion, head, blocks=features.blocks).fit(features.X, features.y)
    np.testing.assert_allclose(found, expected.predict_proba(features.X), atol=1e-5)


def test_onnx_takes_the_modules_that_they_give(features, monkeypatch):
    made = make_classifier("toy", "toy", blocks=features.blocks).fit(features.X, features.y)
    with torch.inference_mode():
        found = as_module(made, ["cat", "dog", "owl"])(torch.from_numpy(features.X)).numpy()
    np.testing.assert_allclose(found, made.predict_proba(features.X), atol=1e-5)
    monkeypatch.delattr(ToyHead, "as_module")
    with pytest.raises(UnknownName, match="ToyHead can't be written") as caught:
        as_module(made, ["cat", "dog", "owl"])
    assert "concat, attention, gated, hadamard, toy, learned-toy;" in caught.value.remedy
    assert "mlp, logreg, lda, nearest_mean." in caught.value.remedy


def test_a_fusion_with_a_module_trains_within_the_mlp(features, tmp_path):
    joint = make_classifier("learned-toy", "mlp", settings={"fusion.dim": 5, "head.epochs": 2})
    assert joint["head"].get_params()["fusion"] == "learned-toy"
    with pytest.raises(RecipeError, match="trained jointly with mlp"):
        make_classifier("learned-toy", "mlp", settings={"fusion.epochs": 5})
    best = fc.compare(
        features, fusion="learned-toy", head="mlp", folds=2, singles=False, reports=tmp_path,
        settings={"mlp.epochs": 2},
    ).best  # fmt: skip
    (fold, _) = json.loads((best.folder / "metrics.json").read_text())["folds"]
    np.testing.assert_allclose(np.sum(fold["attention"]["mean"], axis=1), 1, atol=1e-6)
    head = make_head("learned-toy", "mlp", {"fusion.dim": 5}, 0)
    network, _ = build([tiny_backbone("tiny", dim=6)], head, 3)
    assert isinstance(network.joint[0], Blend)
