"""Folds of several candidates at a time: what is sent, what waits for what, what comes of it."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest

from featcache.errors import RecipeError
from featcache.fitting.evaluate import evaluate_all
from featcache.fitting.executor import LocalExecutor, ProcessExecutor, SharedContext, shared
from featcache.fitting.fitted_steps import FittedSteps, slow_keys, step_keys
from featcache.fitting.fusions.late import VoteFusion
from featcache.fitting.grid import Candidate, candidates, classifier_of
from featcache.fitting.splits import make_folds

from .conftest import make_features
from .test_evaluate import QUICK
from .test_fitted_steps import NAMES, counted, run_grid, same_numbers  # noqa: F401


class FakeExecutor:
    """Takes all it is given at once, and does it in an order of its own; sends by pickle."""

    here = 0

    def __init__(self, seed=0, most=100):
        self._random, self._most = random.Random(seed), most
        self.sent, self.at_once, self.closed = 0, [], False

    def run(self, context, next_task):
        there = pickle.loads(pickle.dumps(context))
        self.sent += 1
        waiting = []
        try:
            while True:
                while len(waiting) < self._most and (task := next_task()) is not None:
                    waiting.append(pickle.loads(pickle.dumps(task[0])))
                    waiting[-1] = (task[0], waiting[-1], pickle.dumps(task[1]))
                if not waiting:
                    return
                self.at_once.append({fit.candidate for fit, _, _ in waiting})
                self._random.shuffle(waiting)
                fit, copy, fitted_steps = waiting.pop()
                yield fit, copy(there, pickle.loads(fitted_steps), 1)
        finally:
            self.closed = True


def fit_each(grid, features, folds, executor, settings=QUICK):
    made = {one: classifier_of(one, 0, settings) for one in grid}
    return evaluate_all(made, features, folds, FittedSteps.of(made), executor)


def fit_all(*args):
    return dict(fit_each(*args))


def steps_of(grid):
    return FittedSteps.of({one: classifier_of(one, 0, QUICK) for one in grid})


GRID = sorted(
    candidates(NAMES, ["concat", "attention", "vote"], ["svm", "logreg"]),
    key=lambda one: one.fusion == "vote",
)


@pytest.mark.parametrize("seed", range(2))
def test_the_numbers_are_those_of_one_after_another(seed):
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    executor = FakeExecutor(seed)
    together = fit_all(GRID, features, folds, executor)
    assert set(together) == set(GRID)
    same_numbers(run_grid(GRID, features, folds, None), together)
    assert [one.name for one in together[GRID[0]].folds] == ["fold1", "fold2"]
    assert max(len(some) for some in executor.at_once) > 3  # candidates in hand together
    assert executor.sent == 1
    assert executor.closed


def test_here_they_come_in_order():
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    results = [fit_all(GRID, features, folds, one) for one in (LocalExecutor(), ProcessExecutor(2))]
    assert [list(found) for found in results] == [GRID, GRID]
    # Several threads in a process, as there are on more than two cores, sum in another order.
    for found, atol in zip(results, (0.0, 1e-5), strict=True):
        same_numbers(run_grid(GRID, features, folds, None), found, atol)
        alone = next(result for one, result in found.items() if one.backbones == ("net1",))
        assert (alone.name, alone.keys) == ("net1.concat.svm", ("key1",))


def test_a_copy_of_columns_is_made_once():
    features = make_features(n=60, blocks=(3, 2, 4))
    context = SharedContext(features, [], None)
    assert context.select(features.names) is features
    one = context.select(("net0", "net2"))
    assert context.select(("net0", "net2")) is one
    assert context.select(("net1",)).names == ("net1",)
    assert pickle.loads(pickle.dumps(context))._selected is None


def test_what_is_worth_waiting_for_is_fitted_once(counted):  # noqa: F811
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = sorted(candidates(NAMES, ["attention", "vote"], ["svm", "knn"]),
                  key=lambda one: one.fusion == "vote")  # fmt: skip
    fit_all(grid, features, folds, FakeExecutor())
    assert counted["AttentionFusion"] == 2  # for two heads, in each of two folds
    assert counted["SVMHead"] == 2 * 3  # two alone and one on the attention; the vote none


def test_who_may_start():
    alone = [Candidate((name,), "concat", "svm") for name in NAMES]
    scaled = [Candidate(NAMES, "concat", head) for head in ("svm", "knn")]
    learned = [Candidate(NAMES, "attention", head) for head in ("svm", "knn")]
    late = [Candidate(NAMES, fusion, "svm") for fusion in ("vote", "stack")]
    fitted_steps = steps_of([*scaled, *learned, *alone, *late])
    started = []
    while (one := fitted_steps.ready()) is not None:
        fitted_steps.next(one)
        started.append(one)
    # A scaler is not waited for, a learned fusion is, and so are heads.
    assert started == [*scaled, learned[0], *alone]
    fitted_steps.done(alone[0])
    assert fitted_steps.ready() is None
    fitted_steps.done(learned[0])
    assert fitted_steps.ready() == learned[1]
    fitted_steps.next(learned[1])
    fitted_steps.done(alone[1])
    # Both at once: the stack does not wait for the heads that the vote takes too.
    for one in late:
        assert fitted_steps.ready() == one
        fitted_steps.next(one)
    assert fitted_steps.ready() is None
    assert not fitted_steps.plans


def test_two_late_fusions_without_the_heads_alone():
    late = [Candidate(NAMES, fusion, "svm") for fusion in ("vote", "stack")]
    fitted_steps = steps_of(late)
    assert fitted_steps.ready() == late[0]
    fitted_steps.next(late[0])
    assert fitted_steps.ready() is None
    fitted_steps.done(late[0])
    assert fitted_steps.ready() == late[1]


def test_what_is_slow():
    def names(fusion, head, select=""):
        one = Candidate(NAMES, fusion, head, select)
        keys = step_keys(classifier_of(one), NAMES)
        slow = slow_keys(classifier_of(one), NAMES)
        return [key in slow for key in keys]

    assert names("concat", "svm") == [False, True]
    assert names("sum", "svm") == [False, True]
    assert names("attention", "svm") == [True, True]
    assert names("concat", "svm", "anova:2") == [False, True, True]
    assert names("concat", "svm", "pca:2") == [False, False, True]
    assert names("vote", "svm") == [True, True]
    assert slow_keys(classifier_of(Candidate(NAMES, "concat", "svm", tune=2)), NAMES) == set()
    assert slow_keys(VoteFusion(), NAMES) == set()


def test_steps_that_nobody_wants_are_not_sent_back():
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = [Candidate((name,), "concat", "svm") for name in NAMES]
    came = []

    class Listening(FakeExecutor):
        def run(self, context, next_task):
            for fit, (result, steps) in super().run(context, next_task):
                came.append((fit.candidate, list(steps)))
                yield fit, (result, steps)

    fit_all(grid, features, folds, Listening())
    assert [steps for _, steps in came] == [[]] * 4
    came.clear()
    fit_all([*grid, Candidate(NAMES, "vote", "svm")], features, folds, Listening(most=1))
    sent = Counter(one.fusion for one, steps in came for _ in steps)
    assert sent == {"concat": 4}  # a head of each backbone in each fold, and no scaler


def test_an_error_ends_it_and_what_is_done_stands():
    features = make_features(n=60)
    folds = make_folds(features, folds=2)
    grid = [Candidate(NAMES, "concat", head) for head in ("logreg", "svm")]
    executor, found, settings = FakeExecutor(most=1), [], {"svm.C": -1.0}
    results = fit_each(grid, features, folds, executor, settings)
    with pytest.raises(RecipeError, match="svm can't be fitted"):
        found += [next(results), next(results)]
    with pytest.raises(StopIteration):
        next(results)
    assert executor.closed
    executor = FakeExecutor(most=1)
    results = fit_each(grid, features, folds, executor, settings)
    assert next(results)[0] == grid[0]
    assert not executor.closed
    results.close()  # whoever takes the results gives up
    assert executor.closed


def test_a_map_is_sent_by_its_name():
    features = make_features(n=400, blocks=(300, 400))
    folds = make_folds(features, folds=2)
    with shared(features, ProcessExecutor(2)) as mapped:
        sent = pickle.dumps(SharedContext(mapped, folds, None, mapped=True))
        assert len(sent) < features.X.nbytes / 4
        for _ in range(2):  # a worker sends it on to another
            there = pickle.loads(sent)
            assert isinstance(there.features.X, np.memmap)
            assert str(there.features.X.filename) == str(mapped.X.filename)
            sent = pickle.dumps(there)
        np.testing.assert_array_equal(there.features.X, features.X)
        np.testing.assert_array_equal(there.features.ids, features.ids)
        del there
    whole = pickle.loads(pickle.dumps(SharedContext(features, folds, None)))
    np.testing.assert_array_equal(whole.features.X, features.X)
