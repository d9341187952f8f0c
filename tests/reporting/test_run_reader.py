"""What a run folder holds is read as it was written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featcache.errors import DataError
from featcache.fitting.leakage import Leak, leaks_to_json
from featcache.reporting.run_reader import read_contents, read_leaks

from .pages import HOSTILE, make_odd_run


def test_predictions_come_back(tmp_path):
    run, features = make_odd_run(tmp_path, folds=3)
    found = read_contents(run.folder)
    assert sorted(found.ids.tolist()) == sorted(features.ids.tolist())
    assert dict(zip(found.ids.tolist(), found.true.tolist(), strict=True)) == dict(
        zip(features.ids.tolist(), features.y.tolist(), strict=True)
    )
    assert found.classes == sorted(["cat", "dog", HOSTILE])
    assert found.proba.shape == (90, 3)
    np.testing.assert_allclose(found.proba.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found.confidence, found.proba.max(axis=1))
    assert found.right.mean() == pytest.approx(run.metric("accuracy"), abs=0.02)


def test_labels_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    run, _ = make_odd_run(tmp_path)
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**facts, "classes": ["01", "1", "NA"]}))
    (run.folder / "predictions.csv").write_text("id,fold,true,pred\n7,test,01,1\n8,test,NA,NA\n")
    found = read_contents(run.folder)
    assert found.true.tolist() == ["01", "NA"]
    assert found.right.tolist() == [False, True]
    assert found.proba is None
    assert found.confidence is None


def test_labels_of_no_class_are_refused(tmp_path):
    run, _ = make_odd_run(tmp_path)
    (run.folder / "predictions.csv").write_text("id,fold,true,pred\n7,test,owl,cat\n")
    with pytest.raises(DataError, match="no classes of the run: owl"):
        read_contents(run.folder)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (leaks_to_json([Leak("equal images", 1, "one twice", (("a", "b"),))], True), ["one twice"]),
        ({"leaks": [{"kind": "a"}, "b"]}, []),
        ({"leaks": 3}, []),
        (7, []),
    ],
)
def test_leaks_come_back(tmp_path, written, read):
    (tmp_path / "leaks.json").write_text(json.dumps(written))
    assert read_leaks(tmp_path) == read
    assert read_leaks(tmp_path / "nowhere") == []


@pytest.mark.parametrize("damaged", ["", '{"leaks":', "[" * 100_000])
def test_damaged_leaks_are_none(tmp_path, damaged):
    (tmp_path / "leaks.json").write_text(damaged)
    assert read_leaks(tmp_path) == []
