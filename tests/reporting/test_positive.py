"""The positive one of two classes: by default the second, or the one that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.evaluate import evaluate
from featcache.fitting.pipeline import make_classifier
from featcache.reporting.compare import compare
from featcache.reporting.refit_command import redo_command
from featcache.reporting.run_page import write_run_page
from featcache.reporting.run_reader import read_contents
from featcache.reporting.schema import read_run

from .conftest import make_features

FIT = {"head": "nearest_mean", "singles": False, "folds": 4}


def metrics(run):
    return {name: run.metrics[f"{name}_positive"] for name in ("precision", "recall", "f1")}


def test_the_default_is_the_last_by_the_alphabet_and_named(tmp_path):
    run = compare(make_features(), reports=tmp_path, **FIT).best
    assert run.positive == "dog"
    assert json.loads((run.folder / "run.json").read_text())["positive"] == "dog"
    assert "--positive" not in redo_command(run)
    page = write_run_page(run.folder).read_text()
    assert "positive: dog" in page
    assert "recall (positive class, dog)" in page


def test_a_label_gives_the_metrics_of_that_class_and_fits_nothing_again(tmp_path, monkeypatch):
    features = make_features(signal=0.8)
    plain = compare(features, reports=tmp_path, **FIT).best
    monkeypatch.setattr("featcache.reporting.compare.save_run", lambda *_, **__: 1 / 0)
    run = compare(features, reports=tmp_path, positive="cat", **FIT).best
    assert run.folder == plain.folder
    assert run.positive == "cat"
    assert run == read_run(run.folder)
    contents = read_contents(run.folder)
    for function, name in ((precision_score, "precision"), (recall_score, "recall")):
        wanted = [
            function(*(column[contents.fold == f"fold{i}"] for column in
                       (contents.true, contents.pred)), pos_label="cat")
            for i in range(1, 5)
        ]  # fmt: skip
        assert run.metrics[f"{name}_positive"] == pytest.approx(np.mean(wanted))
        assert run.sd[f"{name}_positive"] == pytest.approx(np.std(wanted, ddof=1))
    assert metrics(run) != metrics(plain)
    same = {name: value for name, value in run.metrics.items() if "positive" not in name}
    assert same == {name: plain.metrics[name] for name in same}
    assert "--positive cat" in redo_command(run)
    # Not asked for, it is the default again.
    assert compare(features, reports=tmp_path, **FIT).best == plain


def test_a_new_run_has_it_as_one_that_was_there(tmp_path):
    features = make_features(signal=0.8)
    compare(features, reports=tmp_path / "a", **FIT)
    later = compare(features, reports=tmp_path / "a", positive="cat", **FIT).best
    at_once = compare(features, reports=tmp_path / "b", positive="cat", **FIT).best
    assert at_once.folder.name == later.folder.name
    assert metrics(at_once) == pytest.approx(metrics(later))
    result = evaluate(make_classifier("concat", "nearest_mean"), features, folds=4, positive="cat")
    assert result.positive == "cat"
    assert {n: result.metrics[f"{n}_positive"] for n in metrics(later)} == pytest.approx(
        metrics(later)
    )


def test_a_run_from_before_has_the_default(tmp_path):
    run = compare(make_features(), reports=tmp_path, **FIT).best
    facts = json.loads((run.folder / "run.json").read_text())
    del facts["positive"]
    (run.folder / "run.json").write_text(json.dumps(facts))
    assert read_run(run.folder).positive == "dog"
    assert compare(make_features(), reports=tmp_path, **FIT).best.positive == "dog"
    assert "positive" not in json.loads((run.folder / "run.json").read_text())


def test_what_is_no_label(tmp_path):
    with pytest.raises(UnknownName, match="unknown label 'dgo'") as caught:
        compare(make_features(), reports=tmp_path, positive="dgo", **FIT)
    assert caught.value.remedy == "The labels are cat and dog."
    assert not any(tmp_path.rglob("run.json"))
    three = replace(make_features(), y=np.array(["cat", "dog", "owl", "owl"] * 20))
    with pytest.raises(RecipeError, match="positive is 'cat', and there are 3 classes"):
        compare(three, reports=tmp_path, positive="cat", **FIT)
