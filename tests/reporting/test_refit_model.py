"""Which model a comparison keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.fitting.grid import Candidate, fit_candidate
from featcache.fitting.persist import load_pipeline
from featcache.reporting.bundle import FOLDER, read_facts
from featcache.reporting.compare import compare

from .conftest import make_features

QUICK = {"mlp.epochs": 2}


def _model(run: Path):
    facts = read_facts(run / FOLDER)
    return load_pipeline(run / FOLDER, facts["parts"]), facts


def test_on_a_test_split_every_run_keeps_what_was_scored(tmp_path: Path) -> None:
    features = make_features()
    split = np.where(np.arange(len(features)) % 4, "train", "test")
    features = replace(features, split=split)
    done = compare(features, head=["logreg", "mlp"], settings=QUICK, reports=tmp_path)
    for run in done.runs:
        pipeline, facts = _model(run.folder)
        assert facts["trained_on"] == {"rows": 60, "what": "the training rows of the test split"}
        chosen = features.select(run.backbones)
        candidate = Candidate(run.backbones, run.fusion, run.head)
        mine = QUICK if run.head == "mlp" else {}
        own = fit_candidate(candidate, chosen, np.flatnonzero(split == "train"), 0, mine)
        np.testing.assert_allclose(
            pipeline.predict_proba(chosen.X), own.predict_proba(chosen.X), atol=1e-6
        )


def test_with_folds_the_best_is_fitted_again_on_all_rows(tmp_path: Path) -> None:
    features = make_features()
    done = compare(features, head=["logreg", "dummy"], folds=3, reports=tmp_path)
    kept = [run.name for run in done.runs if (run.folder / FOLDER).exists()]
    assert kept == [done.best.name]
    pipeline, facts = _model(done.best.folder)
    assert facts["trained_on"] == {"rows": len(features), "what": "all rows, refitted"}
    assert facts["backbones"][0]["key"] is None  # these features came from no cache
    own = fit_candidate(
        Candidate(done.best.backbones, done.best.fusion, done.best.head),
        features.select(done.best.backbones),
    )
    X = features.select(done.best.backbones).X
    np.testing.assert_allclose(pipeline.predict_proba(X), own.predict_proba(X), atol=1e-6)


def test_another_candidate_gets_its_model_when_it_is_fitted_alone(tmp_path: Path) -> None:
    features = make_features()
    done = compare(features, head=["logreg", "dummy"], folds=3, reports=tmp_path, singles=False)
    other = next(run for run in done.runs if run.folder != done.best.folder)
    before = (other.folder / "run.json").read_bytes()
    compare(features, head=other.head, folds=3, reports=tmp_path, singles=False)
    assert _model(other.folder)[1]["head"] == other.head
    assert (other.folder / "run.json").read_bytes() == before


def test_settings_of_other_heads_are_not_recorded(tmp_path: Path) -> None:
    settings = {"svm.C": 3.0, "logreg.C": 0.5}
    done = compare(make_features(), head="logreg", settings=settings, folds=2, reports=tmp_path)
    assert _model(done.best.folder)[1]["settings"] == {"logreg.C": 0.5}


@pytest.mark.parametrize("options", [{"select": "anova:2"}, {"tune": 2}, {"fusion": "vote"}])
def test_selections_searches_and_late_fusions_are_kept_too(
    tmp_path: Path, options: dict[str, object]
) -> None:
    features = make_features()
    run = compare(features, head="mlp", settings=QUICK, folds=2, reports=tmp_path,
                  singles=False, **options).best  # fmt: skip
    pipeline, facts = _model(run.folder)
    assert facts["name"] == run.name
    assert pipeline.predict(features.X).shape == (len(features),)
