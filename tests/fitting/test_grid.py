import numpy as np
import pytest

from featcache.errors import UnknownName
from featcache.fitting.evaluate import evaluate
from featcache.fitting.grid import Candidate, candidates, run_candidate
from featcache.fitting.splits import make_folds

from .test_evaluate import QUICK, quick


def test_candidates_in_order():
    made = candidates(["r", "m"], ["concat", "attention"], ["mlp", "svm"])
    assert [candidate.name for candidate in made] == [
        "r+m.concat.mlp",
        "r+m.concat.svm",
        "r+m.attention.mlp",
        "r+m.attention.svm",
        "r.concat.mlp",
        "r.concat.svm",
        "m.concat.mlp",
        "m.concat.svm",
    ]


def test_singles():
    assert len(candidates(["r", "m"], ["concat"], ["mlp"], singles=False)) == 1
    assert candidates(["r"], ["concat"], ["mlp"]) == [Candidate(("r",), "concat", "mlp")]
    assert len(candidates(["r"], ["concat", "concat"], ["mlp"])) == 1


def test_unknown_names():
    with pytest.raises(UnknownName, match="fusion 'product'"):
        candidates(["r"], ["product"], ["mlp"])
    with pytest.raises(UnknownName, match="head 'tree'"):
        candidates(["r"], ["concat"], ["tree"])


def test_run_candidate_uses_its_backbones(features):
    folds = make_folds(features, folds=2)
    result = run_candidate(Candidate(("net1",), "concat", "mlp"), features, folds, 0, QUICK)
    alone = evaluate(quick("concat", "mlp"), features.select(["net1"]), split=folds)
    assert result.name == "net1.concat.mlp"
    assert result.keys == ("key1",)
    for fold, other in zip(result.folds, alone.folds, strict=True):
        np.testing.assert_array_equal(fold.proba, other.proba)
