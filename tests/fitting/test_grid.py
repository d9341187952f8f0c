import pytest

from featcache.errors import UnknownName
from featcache.fitting.grid import Candidate, candidates


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
