"""A fitted pipeline comes back from its files and says the same; hostile files are refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from safetensors.torch import load_file, save_file
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC as PlainSVC

from featcache.errors import DataError, FeatcacheError
from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.heads import svm
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.persist import NETWORKS, PIPELINE, load_pipeline, save_pipeline
from featcache.fitting.pipeline import make_classifier

from .conftest import make_features
from .pairs import PAIRS

QUICK = {
    "mlp.epochs": 1,
    "attention.dim": 8,
    "gated.dim": 8,
    "hadamard.dim": 8,
    "forest.n_estimators": 3,
    "xgboost.n_estimators": 3,
    "bilinear.width": 16,
}


def _quick(fusion: str, head: str) -> dict[str, object]:
    mine = {k: v for k, v in QUICK.items() if k.split(".")[0] in (fusion, head)}
    if fusion in ("attention", "gated", "hadamard") and head != "mlp":
        mine[f"{fusion}.epochs"] = 1
    return mine


def _round_trip(folder: Path, pipeline):
    parts = save_pipeline(folder, pipeline)
    return load_pipeline(folder, json.loads(json.dumps(parts)))


def _says(pipeline, X):
    for method in ("predict_proba", "decision_function"):
        if hasattr(pipeline, method):
            return getattr(pipeline, method)(X)
    return (pipeline.predict(X)[:, None] == pipeline.classes_).astype(float)


@pytest.mark.parametrize("rows", [0, 1000])
@pytest.mark.parametrize("fusion", ["concat", "vote", "stack"])
def test_an_svm_of_scikit_learns_own_svc_comes_back(tmp_path, monkeypatch, fusion, rows):
    """Also without what it said of rows that were held out, of which there are many."""
    monkeypatch.setattr(svm, "SVC", PlainSVC)
    features = make_features()
    settings = {"svm.gram_rows": rows}
    pipeline = make_classifier(fusion, "svm", blocks=features.blocks, settings=settings)
    again = _round_trip(tmp_path, pipeline.fit(features.X, features.y))
    if fusion == "concat":
        assert hasattr(pipeline[-1], "held_out_")
        assert not hasattr(again[-1], "held_out_")
    np.testing.assert_allclose(_says(again, features.X), _says(pipeline, features.X), atol=1e-6)


@pytest.mark.parametrize(("fusion", "head"), PAIRS)
def test_every_fusion_and_head_says_the_same_after_a_round_trip(fusion, head, tmp_path):
    features = make_features(n=45)
    made = make_classifier(fusion, head, blocks=features.blocks, settings=_quick(fusion, head)).fit(
        features.X, features.y
    )
    back = _round_trip(tmp_path, made)
    fresh = make_features(n=30, seed=1).X
    np.testing.assert_allclose(_says(back, fresh), _says(made, fresh), atol=1e-6, rtol=0)
    assert back.predict(fresh).tolist() == made.predict(fresh).tolist()
    assert not any(path.suffix in (".pkl", ".joblib", ".pt") for path in tmp_path.iterdir())


def test_networks_and_boosters_are_found_in_searches_selections_and_lists(features, tmp_path):
    search = GridSearchCV(MLPHead(epochs=1), {"hidden": [4, 8]}, cv=2)
    made = make_pipeline(ConcatFusion(), SelectKBest(k=5), search).fit(features.X, features.y)
    back = _round_trip(tmp_path, made)
    np.testing.assert_allclose(back.predict_proba(features.X), made.predict_proba(features.X))
    inner = back.steps[-1][1].network_  # of the search only what it chose
    assert isinstance(inner, torch.nn.Module)
    assert not inner.training


def test_the_pipeline_itself_is_left_as_it_was(features, tmp_path):
    made = make_classifier("concat", "mlp", settings={"mlp.epochs": 1})
    made.fit(features.X, features.y)
    before = made.predict_proba(features.X)
    save_pipeline(tmp_path, made)
    np.testing.assert_array_equal(made.predict_proba(features.X), before)


def test_tensors_are_readable_without_featcache(features, tmp_path):
    made = make_classifier("concat", "mlp", settings={"mlp.epochs": 1, "mlp.hidden": 7})
    save_pipeline(tmp_path, made.fit(features.X, features.y))
    shapes = {name: tuple(v.shape) for name, v in load_file(tmp_path / NETWORKS).items()}
    assert shapes == {
        "0.layers.0.weight": (7, 10), "0.layers.0.bias": (7,),
        "0.layers.3.weight": (3, 7), "0.layers.3.bias": (3,),
    }  # fmt: skip


class Stranger(LogisticRegression):
    """An estimator that is neither ours nor scikit-learn's."""


def test_a_strange_estimator_can_t_be_kept(features, tmp_path):
    made = make_pipeline(StandardScaler(), Stranger()).fit(features.X, features.y)
    with pytest.raises(FeatcacheError, match="Stranger"):
        save_pipeline(tmp_path, made)


@pytest.fixture
def saved(features, tmp_path):
    made = make_classifier("concat", "mlp", settings={"mlp.epochs": 1})
    return tmp_path, save_pipeline(tmp_path, made.fit(features.X, features.y))


def _schema(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("schema.json"))


def _write(path: Path, schema: object, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("schema.json", json.dumps(schema))


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("pickled", "w"))


def test_a_file_that_names_other_types_is_refused_and_makes_nothing(saved, monkeypatch):
    folder, parts = saved
    monkeypatch.chdir(folder)
    schema = _schema(folder / PIPELINE)
    schema |= {
        "__class__": "system", "__module__": "os", "__loader__": "FunctionNode",
        "content": "system",
    }  # fmt: skip
    _write(folder / PIPELINE, schema)
    with pytest.raises(DataError, match=r"os\.system"):
        load_pipeline(folder, parts)


@pytest.mark.parametrize(
    "name",
    ["featcache.hashing.sha256_file", "featcache.fitting.executor.Parallel",
     "featcache.fitting.training.train", "featcache.fitting.evaluate.Result"],
)  # fmt: skip
def test_of_our_own_only_estimators_are_made(saved, name):
    folder, parts = saved
    module, _, kind = name.rpartition(".")
    state = {"__class__": kind, "__module__": module, "__loader__": "ObjectNode"}
    _write(folder / PIPELINE, {**_schema(folder / PIPELINE), **state, "content": None})
    with pytest.raises(DataError, match=kind):
        load_pipeline(folder, parts)


def test_something_that_is_no_estimator_is_refused(saved):
    folder, parts = saved
    skops.io.dump({"a": 1}, folder / PIPELINE)
    with pytest.raises(DataError, match="no estimator"):
        load_pipeline(folder, parts)


def test_a_zip_bomb_is_refused_unread(saved):
    folder, parts = saved
    _write(folder / PIPELINE, "0" * 10_000_000, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="unpacks to more"):
        load_pipeline(folder, parts)


def test_pickles_are_not_read(saved, monkeypatch):
    """Neither in place of the zip, nor as an array of objects inside it."""
    import pickle

    folder, parts = saved
    monkeypatch.chdir(folder)
    whole = (folder / PIPELINE).read_bytes()
    (folder / PIPELINE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="no readable model"):
        load_pipeline(folder, parts)
    array = io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(folder / PIPELINE, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, array.getvalue() if name.endswith(".npy") else old.read(name))
    with pytest.raises(DataError, match="no readable model"):
        load_pipeline(folder, parts)
    assert not Path("pickled").exists()


@pytest.mark.parametrize(
    "damage",
    [b"", b"PK\x03\x04 and nothing", b"{}"],
)
def test_damage_is_one_clear_error(saved, damage):
    folder, parts = saved
    (folder / PIPELINE).write_bytes(damage)
    with pytest.raises(DataError, match="no readable model"):
        load_pipeline(folder, parts)


def test_tensors_of_another_shape_are_refused(saved):
    folder, parts = saved
    save_file({"0.layers.0.weight": torch.zeros(2, 2)}, folder / NETWORKS)
    with pytest.raises(DataError, match="no readable model"):
        load_pipeline(folder, parts)


@pytest.mark.parametrize(
    "place",
    [["steps", 1, 1, "classes_"], ["steps", 9, 1, "network_"], ["__class__"], [], ["steps"]],
)
def test_parts_go_only_where_one_was_taken_out(saved, place):
    folder, parts = saved
    with pytest.raises(DataError):
        load_pipeline(folder, [{**parts[0], "place": place}])


def test_a_tree_that_leads_nowhere_is_refused(features, tmp_path):
    """scikit-learn follows a tree's numbers without looking."""
    made = make_classifier("concat", "forest", settings={"forest.n_estimators": 1})
    made.fit(features.X, features.y)
    tree = made.named_steps["head"].estimators_[0].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 10**6
    tree.__setstate__(state)
    parts = save_pipeline(tmp_path, made)
    with pytest.raises(DataError, match="tree"):
        load_pipeline(tmp_path, parts)


def test_nothing_of_a_plain_pipeline_is_lost_to_copies(features, tmp_path):
    made = Pipeline([("scale", StandardScaler()), ("head", LogisticRegression())])
    assert save_pipeline(tmp_path, made.fit(features.X, features.y)) == []
    assert [path.name for path in tmp_path.iterdir()] == [PIPELINE]
