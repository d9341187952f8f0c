import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from featcache.fitting.metrics import ACCURACY
from featcache.fitting.significance import compare_all
from featcache.fitting.splits import make_folds
from featcache.reporting.ablation import ablation, answers, write_ablation
from featcache.reporting.compare import compare
from featcache.reporting.ties import mark_ties, rank_by

from .conftest import make_features, make_run, own_split


def pair(tmp_path, features, folds, both, alone):
    """A run on both backbones, and one on the first alone, with these outcomes."""
    whole = make_run(tmp_path, features, folds, both, "svm")
    one = make_run(tmp_path / "alone", features.select(["big"]), folds, alone, "svm")
    return [whole, one]


def five_folds(both, alone):
    """The p-value of t over rows, with 1 + 5 * 40 / 160 times their variance."""
    difference = both * 1.0 - alone
    t = difference.mean() / np.sqrt(2.25 * difference.var(ddof=1) / len(both))
    return 2 * stats.t.sf(t, len(both) - 1)


def test_on_one_split(tmp_path, caplog):
    features = make_features(200)
    folds = own_split(200, 100)
    rng = np.random.default_rng(0)
    both, alone = rng.random(200) < 0.9, rng.random(200) < 0.7
    (found,) = ablation(pair(tmp_path, features, folds, both, alone))
    tested = slice(100, 200)
    difference = both[tested].astype(float) - alone[tested]
    assert (found.backbone, found.fusion, found.head) == ("small", "concat", "svm")
    assert found.adds == pytest.approx(difference.mean())
    assert found.p == pytest.approx(compare_all(np.stack([both, alone], axis=1)[tested]).p[0])
    # Against the normal interval of a mean of 100 differences.
    reach = 1.96 * difference.std(ddof=1) / 10
    assert found.low == pytest.approx(found.adds - reach, abs=0.025)
    assert found.high == pytest.approx(found.adds + reach, abs=0.025)
    assert "without big" in caplog.text  # the other single is not among the runs


def test_over_folds(tmp_path):
    features = make_features(200)
    folds = make_folds(features, folds=5)
    rng = np.random.default_rng(1)
    both, alone = rng.random(200) < 0.9, rng.random(200) < 0.7
    (found,) = ablation(pair(tmp_path, features, folds, both, alone))
    assert found.p == pytest.approx(five_folds(both, alone), abs=0.01)
    assert found.low < found.adds < found.high
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05)  # the interval is the test's


def test_an_addition_is_tested_as_the_table_tests_it(tmp_path):
    """Views train, but are no further images: with four of each the spread is that of 160."""
    features = make_features(200)
    folds = make_folds(features, folds=5)
    rng = np.random.default_rng(1)
    both, alone = rng.random(200) < 0.9, rng.random(200) < 0.75
    runs = pair(tmp_path, features, folds, both, alone)
    for run in runs:
        path = run.folder / "metrics.json"
        scores = json.loads(path.read_text())
        for fold in scores["folds"]:
            fold["train_images"], fold["train"] = fold["train"], 5 * fold["train"]
        path.write_text(json.dumps(scores))
    (found,) = ablation(runs)
    assert found.p == mark_ties(runs)[1].p
    assert found.p == pytest.approx(five_folds(both, alone), abs=0.01)
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05)


def test_the_test_is_over_all_additions(tmp_path):
    features = make_features(200)
    folds = own_split(200, 100)
    rng = np.random.default_rng(0)
    both, alone = rng.random(200) < 0.9, rng.random(200) < 0.7
    runs = pair(tmp_path, features, folds, both, alone)
    small = make_run(
        tmp_path / "s", features.select(["small"]), folds, rng.random(200) < 0.5, "svm"
    )
    one, two = sorted(one.p for one in ablation([*runs, small]))
    assert one <= two
    assert [row.adds for row in ablation([*runs, small])] == sorted(
        (row.adds for row in ablation([*runs, small])), reverse=True
    )


def test_the_grid_has_what_it_takes(tmp_path):
    two = make_features(60)
    three = replace(
        two,
        X=np.concatenate([two.X, two.X[:, :2]], axis=1),
        blocks=(3, 2, 2),
        names=("big", "small", "copy"),
        keys=("key0", "key1", "key2"),
    )
    for features, count in ((two, 2), (three, 3)):
        reports = tmp_path / str(count)
        done = compare(features, fusion=["concat"], head=["logreg"], folds=2, reports=reports,
                       singles=False, ablate=True)  # fmt: skip
        found = ablation(done.runs)
        assert {one.backbone for one in found} == set(features.names)
        assert all(one.low <= one.adds <= one.high for one in found)
        path = write_ablation(reports, found)
        assert len(path.read_text().splitlines()) == count + 1


def test_one_backbone_has_nothing_to_leave_out(tmp_path):
    features = make_features(60).select(["big"])
    done = compare(features, head="logreg", folds=2, reports=tmp_path, ablate=True)
    assert ablation(done.runs) == []
    assert ablation([]) == []


METHOD = "(paired max-T test, 5 %)"


def drawn(seed, rate, n=400):
    return np.random.default_rng(seed).random(n) < rate


def with_views(tmp_path, outcomes):
    """For each head a run without views and one with a flip, with these outcomes."""
    features, folds = make_features(400), own_split(400, 200)
    runs = []
    for head, (plain, flipped) in outcomes.items():
        runs.append(make_run(tmp_path / "plain", features, folds, plain, head))
        other = make_run(tmp_path / "flipped", features, folds, flipped, head)
        runs.append(replace(other, view=("hflip",), rows="other rows to train on"))
    return rank_by(ACCURACY, runs)


def test_do_views_help(tmp_path):
    plain = drawn(0, 0.7)
    better, same = plain | drawn(1, 0.5), plain.copy()
    same[np.flatnonzero(same)[-2:]] = False
    more = 100 * (better[200:].mean() - plain[200:].mean())
    (text,) = answers(with_views(tmp_path / "a", {"svm": (plain, better), "mlp": (plain, same)}))
    start = f"Do views help? With hflip 2 candidates gain -1.0 … {more:+.1f}, "
    assert text.startswith(start)
    assert float(text.removeprefix(start).split()[0]) == pytest.approx((more - 1) / 2, abs=0.06)
    assert text.endswith(
        " points on average; 1 is better by more than chance, 1 can't be told from the same "
        f"without {METHOD}."
    )
    (text,) = answers(with_views(tmp_path / "b", {"mlp": (plain, same)}))
    assert text == (
        "Do views help? With hflip 1 candidate gains -1.0 points; it can't be told from the same "
        f"without {METHOD}."
    )
    (text,) = answers(with_views(tmp_path / "c", {"svm": (better, plain)}))
    assert "1 is worse by more than chance" in text
    (text,) = answers(with_views(tmp_path / "d", {"mlp": (plain, same), "svm": (same, plain)}))
    assert text.endswith(f"; none can be told from the same without {METHOD}.")


def test_views_of_other_settings_or_images_are_no_answer(tmp_path):
    runs = with_views(tmp_path, {"mlp": (drawn(0, 0.7), drawn(1, 0.9))})
    views = [run for run in runs if run.view]
    plain = [run for run in runs if not run.view]
    assert answers(plain) == answers(views) == []
    for other in ({"seed": 1}, {"settings": {"head.hidden": 8}}, {"tested": 7}, {"data": "x"}):
        assert answers([*plain, *(replace(run, **other) for run in views)]) == []
    for run in views:
        (run.folder / "predictions.csv").unlink()
    assert answers(runs) == []


def pairs_of(tmp_path, outcomes):
    features, folds = make_features(400), own_split(400, 200)
    runs = []
    for names, right in outcomes.items():
        run = make_run(tmp_path / "+".join(names), features, folds, right, "svm")
        runs.append(replace(run, backbones=names))
    return rank_by(ACCURACY, runs)


def test_which_pair(tmp_path):
    good = drawn(0, 0.9)
    close = good.copy()
    close[np.flatnonzero(close)[-2:]] = False
    bad = drawn(1, 0.5)
    outcomes = {("a", "b"): good, ("a", "c"): close, ("b", "c"): bad, ("a",): bad}
    (text,) = answers(pairs_of(tmp_path / "1", outcomes))
    score = good[200:].mean()
    assert text == (
        f"Which pair of backbones? a + b (concat, svm): accuracy {score:.2f}; 1 of the 2 others "
        f"can't be told from it; a alone is worse by more than chance {METHOD}."
    )
    (text,) = answers(pairs_of(tmp_path / "5", dict.fromkeys(outcomes, good)))
    assert "none of the 2 others can be told from it, nor can a alone (" in text
    del outcomes["a", "c"]
    (text,) = answers(pairs_of(tmp_path / "2", outcomes | {("a",): close}))
    assert "the other one is worse by more than chance; a alone can't be told from it" in text
    (text,) = answers(pairs_of(tmp_path / "3", {("a", "b"): bad, ("b", "c"): bad, ("a",): good}))
    assert "the other one can't be told from it; a alone is better by more than chance" in text
    assert answers(pairs_of(tmp_path / "4", {("a", "b"): good, ("a",): bad})) == []
