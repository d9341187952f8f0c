"""Keys, digests, names and files of the version that `golden/make.py` was run by.

A user's cache is worth days: whatever is moved or renamed in the code, it is found, and so are run
folders, and models say what they said.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from golden import make

import featcache as fc
from featcache.store.feature_file import FeatureFile

BUNDLES = sorted(path.name for path in make.MODELS.iterdir())


def test_keys_of_every_kind_of_backbone() -> None:
    wanted = json.loads(make.KEYS.read_text(encoding="utf-8"))
    specs = [spec for spec in make.SPECS if find_spec("timm") or not spec.startswith("timm:")]
    found = dict(make.keys(specs))
    assert found == {name: wanted[name] for name in found}
    assert find_spec("timm") is None or found.keys() == wanted.keys()


def test_names_and_digests_of_runs(tmp_path: Path) -> None:
    assert make.runs(tmp_path) == json.loads(make.RUNS.read_text(encoding="utf-8"))


def test_the_feature_file_reads_with_ours_and_with_plain_h5py() -> None:
    with FeatureFile(make.FEATURES) as file:
        mine = np.empty((len(file), file.dim), np.float32)
        file.read(np.arange(len(file)), mine)
        assert (len(file), file.dim, file.key.backbone) == (60, 5, "first")
        assert file.good().all()
    with h5py.File(make.FEATURES) as plain:
        np.testing.assert_array_equal(plain["features"][:], mine)
        assert plain["sha256"].shape == (60, 32)
        assert plain["done"][:].all()
        assert json.loads(plain.attrs["key"])["backbone"] == "first"


@pytest.mark.parametrize("name", BUNDLES)
def test_models_say_what_they_said(name: str) -> None:
    if name.endswith(".xgboost") and find_spec("xgboost") is None:
        pytest.skip("xgboost is not installed")
    folder = make.MODELS / name
    model = fc.load_model(folder, backbone=make.backbones())
    said = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    proba = model.predict_proba(make.new_images())
    np.testing.assert_allclose(proba, said["proba"], atol=2e-3)
    sure = np.sort(said["proba"], axis=1)
    clear = sure[:, -1] - sure[:, -2] > 0.01  # rounding on another processor may turn the others
    assert np.array_equal(model.predict(make.new_images())[clear], np.array(said["labels"])[clear])


def test_every_fusion_and_head_of_a_bundle_is_there() -> None:
    made = {f"{fusion}.{head}" for fusion, head, _ in make.BUNDLES}
    assert made == set(BUNDLES)
    assert all(re.fullmatch(r"\w+\.\w+", name) for name in BUNDLES)
