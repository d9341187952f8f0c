"""Candidates of a grid share what they have in common, and nothing comes out otherwise."""

import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from joblib import Parallel, delayed

from featcache.fitting import fitted_steps
from featcache.fitting.evaluate import evaluate, evaluate_all
from featcache.fitting.executor import LocalExecutor, ProcessExecutor, shared
from featcache.fitting.fitted_steps import FittedSteps, step_keys
from featcache.fitting.fusions.late import VoteFusion
from featcache.fitting.fusions.learned import AttentionFusion
from featcache.fitting.grid import Candidate, classifier_of
from featcache.fitting.heads.svm import SVMHead
from featcache.fitting.splits import make_folds

from .conftest import make_features
from .test_evaluate import QUICK

NAMES = ("net0", "net1")


def grid_of(*pairs):
    made = [Candidate(NAMES, fusion, head) for fusion, head in pairs]
    return made


def run_grid(grid, features, folds, fitted_steps, executor=None):
    """One after another; without `fitted_steps` each by itself."""
    made = {one: classifier_of(one, 0, QUICK) for one in grid}
    if fitted_steps is None:
        return {
            one: evaluate(made[one], features.select(one.backbones), split=folds) for one in grid
        }
    executor = executor or LocalExecutor()
    return dict(evaluate_all(made, features, folds, fitted_steps, executor))


def steps_of(grid):
    return FittedSteps.of({one: classifier_of(one, 0, QUICK) for one in grid})


@pytest.fixture
def counted(monkeypatch):
    """How often each class was fitted."""
    counts = Counter()
    for kind in (SVMHead, AttentionFusion):
        real = kind.fit

        def fit(self, X, y, groups=None, *, _real=real, _name=kind.__name__):
            counts[_name] += 1
            return _real(self, X, y, groups)

        monkeypatch.setattr(kind, "fit", fit)
    return counts


def test_late_fusions_take_the_heads_of_single_backbones(counted):
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = [
        Candidate(("net0",), "concat", "svm"),
        Candidate(("net1",), "concat", "svm"),
        *grid_of(("vote", "svm")),
    ]
    alone = run_grid(grid, features, folds, None)
    assert counted["SVMHead"] == 2 * 4
    counted.clear()
    together = run_grid(grid, features, folds, steps_of(grid))
    assert counted["SVMHead"] == 2 * 2  # the vote fitted none of its own
    same_numbers(alone, together)


def test_a_fusion_is_fitted_once_for_all_heads(counted):
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = grid_of(("attention", "svm"), ("attention", "logreg"), ("attention", "knn"))
    alone = run_grid(grid, features, folds, None)
    assert counted["AttentionFusion"] == 6
    counted.clear()
    together = run_grid(grid, features, folds, steps_of(grid))
    assert counted["AttentionFusion"] == 2
    same_numbers(alone, together)


def test_what_a_shared_fusion_cost_is_counted_into_each(monkeypatch):
    clock, plain = [0.0], AttentionFusion.fit

    def fit(self, X, y, groups=None):
        clock[0] += 100  # the only thing that takes time
        return plain(self, X, y, groups)

    monkeypatch.setattr(AttentionFusion, "fit", fit)
    monkeypatch.setattr(fitted_steps, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    features = make_features(n=60)
    grid = grid_of(("attention", "svm"), ("attention", "logreg"), ("attention", "knn"))
    found = run_grid(grid, features, make_folds(features, folds=2), steps_of(grid))
    assert clock == [200]
    assert [result.fit_seconds for result in found.values()] == [200] * 3


@pytest.mark.parametrize("fusion", ["vote", "stack"])
@pytest.mark.parametrize("head", ["svm", "logreg", "mlp", "ridge"])
def test_sharing_changes_no_number(fusion, head):
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = [
        Candidate(("net0",), "concat", head),
        *grid_of((fusion, head)),
        Candidate(("net1",), "concat", head),
    ]
    same_numbers(run_grid(grid, features, folds, None),
                 run_grid(grid, features, folds, steps_of(grid)))  # fmt: skip


def test_sharing_across_processes():
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = [Candidate(("net0",), "concat", "logreg"), *grid_of(("vote", "logreg"))]
    same_numbers(run_grid(grid, features, folds, None),
                 run_grid(grid, features, folds, steps_of(grid), ProcessExecutor(2)))  # fmt: skip


def test_nothing_is_kept_that_nobody_needs():
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = grid_of(("attention", "svm"), ("attention", "logreg"), ("concat", "knn"))
    fitted_steps = steps_of(grid)
    made = {one: classifier_of(one, 0, QUICK) for one in grid}
    results = evaluate_all(made, features, folds, fitted_steps, LocalExecutor())
    next(results)
    assert all(len(steps) == 1 for steps in fitted_steps._steps.values())  # the attention
    list(results)
    assert not any(fitted_steps._steps.values())


def test_settings_tell_steps_apart():
    one, other = (
        step_keys(classifier_of(Candidate(NAMES, "concat", "svm"), 0, settings), NAMES)
        for settings in ({}, {"concat.scale": "l2"})
    )
    assert not set(one) & set(other)
    assert step_keys(classifier_of(Candidate(NAMES, "concat", "svm", tune=2)), NAMES) == []
    assert step_keys(VoteFusion(), NAMES) == []


def where(X):
    """The file that an array is mapped from, if any."""
    while X is not None and not isinstance(X, np.memmap):
        X = X.base
    return None if X is None else str(X.filename)


def test_workers_map_one_file():
    features = make_features(n=400, blocks=(300, 400))
    with shared(features, ProcessExecutor(2)) as common:
        one = common.select(["net1"]).X
        assert np.shares_memory(one, common.X)
        files = Parallel(n_jobs=2)(delayed(where)(X) for X in (common.X, one))
        assert files == [str(common.X.filename)] * 2
        np.testing.assert_array_equal(one, features.X[:, 300:])
        path = common.X.filename
    assert not os.path.exists(path)  # noqa: PTH110
    with shared(features, LocalExecutor()) as same:
        assert same is features


def test_threads_of_a_worker(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("featcache.fitting.executor.Parallel", lambda n_jobs: lambda calls: [
        seen.append((n_jobs, args[-1])) or call(*args, **kw) for call, args, kw in calls
    ])  # fmt: skip
    monkeypatch.setattr("featcache.fitting.executor.effective_n_jobs", lambda n: n)
    features = make_features(n=60)
    evaluate(classifier_of(Candidate(NAMES, "concat", "logreg")), features, folds=4, n_jobs=4)
    assert seen == [(4, 2)] * 4


def same_numbers(one, other, atol=0.0):
    for candidate, result in one.items():
        for fold, again in zip(result.folds, other[candidate].folds, strict=True):
            np.testing.assert_array_equal(fold.pred, again.pred)
            if fold.proba is not None:
                np.testing.assert_allclose(fold.proba, again.proba, rtol=0, atol=atol)
