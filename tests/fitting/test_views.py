import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import DataError, RecipeError
from featcache.fitting.evaluate import evaluate
from featcache.fitting.splits import (
    balanced,
    check_plan,
    components,
    describe_folds,
    make_folds,
    only_images,
)
from featcache.store.features import Features

from .conftest import make_features


def add(features: Features, *views: str) -> Features:
    """The features with views whose vectors are a little off those of their images."""
    n, k = len(features), len(views) + 1
    rng = np.random.default_rng(1)
    X = np.tile(features.X, (k, 1))
    X[n:] += rng.normal(scale=0.1, size=X[n:].shape).astype(np.float32)
    return replace(
        features,
        X=X,
        ids=np.concatenate([features.ids, *(np.char.add(features.ids, f"@{v}") for v in views)]),
        view=np.repeat(["none", *views], n),
        **{
            name: np.tile(getattr(features, name), k) for name in ("y", "sha256", "groups", "split")
        },
    )


def uneven(counts, **options):
    """Features with these many images of each class."""
    features = make_features(n=3 * max(counts), **options)
    rows = [np.flatnonzero(features.y == c)[:n] for c, n in zip(np.unique(features.y), counts)]  # noqa: B905
    return features.rows(np.sort(np.concatenate(rows)))


@settings(max_examples=40)
@given(data=st.data(), k=st.integers(2, 4), balance=st.booleans(), repeats=st.integers(1, 2))
def test_views_are_never_tested_and_never_across(data, k, balance, repeats):
    n = 48
    groups = data.draw(st.lists(st.sampled_from(["", *"abcdefgh"]), min_size=n, max_size=n))
    sha256 = data.draw(st.lists(st.integers(0, 150).map(str), min_size=n, max_size=n))
    known = data.draw(st.booleans())
    plain = make_features(n=n, classes=("x", "y"), groups=groups, sha256=sha256)
    plain = plain if known else replace(plain, sha256=np.full(n, ""))
    features = add(plain, "hflip", "rot90")
    try:
        folds = make_folds(features, folds=k, balance=balance, repeats=repeats)
    except DataError:
        return
    linked = components(features)
    for fold in folds:
        assert (features.view[fold.test] == "none").all()
        assert not set(linked[fold.test]) & set(linked[fold.train])
        sources = set(features.sources[fold.train].tolist())
        assert not sources & set(features.ids[fold.test].tolist())
        assert len(np.unique(fold.train)) == len(fold.train)
        if not balance:
            assert len(fold.train) == 3 * len(sources)
    for repeat in range(repeats):
        tested = np.concatenate([fold.test for fold in folds[repeat * k : repeat * k + k]])
        assert sorted(tested) == list(range(n))


def test_folds_of_the_images_do_not_depend_on_views():
    plain = make_features()
    for one, other in zip(make_folds(plain), make_folds(add(plain, "hflip")), strict=True):
        np.testing.assert_array_equal(one.test, other.test)
        np.testing.assert_array_equal(one.train, other.train[: len(one.train)])


def test_the_data_s_own_split_tests_no_views():
    plain = make_features(split=["train"] * 90 + ["test"] * 30)
    (fold,) = make_folds(add(plain, "hflip"))
    assert fold.test.tolist() == list(range(90, 120))
    assert sorted(fold.train) == [*range(90), *range(120, 210)]


def test_balance_fills_every_class_up_in_every_fold():
    features = add(uneven((40, 24, 16)), "hflip", "rot90")
    for fold in make_folds(features, folds=4, balance=True):
        y, view = features.y[fold.train], features.view[fold.train]
        images = {c: int(((y == c) & (view == "none")).sum()) for c in np.unique(y)}
        assert images == {"cat": 30, "dog": 18, "owl": 12}
        assert np.unique(y, return_counts=True)[1].tolist() == [30, 30, 30]
        assert not (view[y == "cat"] != "none").any()


def test_balance_follows_from_the_seed():
    features = add(uneven((40, 24, 16)), "hflip", "rot90")

    def train(seed, folds):
        return [sorted(f.train) for f in make_folds(features, folds, balance=True, seed=seed)]

    assert train(0, 4) == train(0, 4)
    assert train(0, 4) != train(1, 4)


def test_too_few_views_are_said_in_one_line(caplog):
    features = add(uneven((40, 24, 8)), "hflip")
    with caplog.at_level(logging.WARNING, "featcache"):
        folds = make_folds(features, folds=4, balance=True)
    assert len(caplog.records) == 1
    assert "'owl' has 12 of 30 in fold1" in caplog.text
    counts = np.unique(features.y[folds[0].train], return_counts=True)[1]
    assert counts.tolist() == [30, 30, 12]


def test_leaky_folds_deal_every_row_as_if_it_stood_alone():
    features = add(make_features(groups=[f"g{i // 2}" for i in range(120)]), "hflip")
    folds = make_folds(features, folds=4, leaky=True)
    assert all(fold.leaky for fold in folds)
    assert describe_folds(folds) == "4 folds, leaky"
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(240))
    first = folds[0]
    assert (features.view[first.test] == "hflip").any()
    assert set(features.sources[first.test]) & set(features.sources[first.train])


def test_leaky_and_balanced_fills_up_before_the_split():
    features = add(uneven((40, 24, 16)), "hflip", "rot90")
    folds = make_folds(features, folds=4, balance=True, leaky=True)
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == sorted(balanced(features, 0))
    assert np.unique(features.y[tested], return_counts=True)[1].tolist() == [40, 40, 40]


def test_leaky_scores_are_better_than_honest_ones_where_there_is_nothing_to_learn():
    """One's own image among the neighbours gives the label away."""
    from sklearn.neighbors import KNeighborsClassifier

    features = add(make_features(signal=0.0, n=150), "hflip", "rot90")
    near = KNeighborsClassifier(1)
    honest = evaluate(near, features, folds=5).metrics["accuracy"]
    leaky = evaluate(near, features, split=make_folds(features, 5, leaky=True))
    assert honest < 0.5
    assert leaky.metrics["accuracy"] > 0.9


def test_training_images_are_counted_without_their_views():
    features = add(make_features(), "hflip", "rot90")
    (first, *_) = evaluate(_logreg(), features, folds=4).folds
    assert (first.train_size, first.train_images) == (270, 90)


def _logreg():
    from featcache.fitting.pipeline import make_classifier

    return make_classifier("concat", "logreg")


def test_only_images():
    plain = make_features()
    assert only_images(plain) is plain
    np.testing.assert_array_equal(only_images(add(plain, "hflip")).X, plain.X)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (([], True, False, False, 1), "no views to fill up with"),
        ((["hflip"], False, True, True, 1), "exclude each other"),
        ((["hflip"], False, False, False, 0), "0 repeats"),
    ],
)
def test_plans_that_make_no_sense(plan, message):
    with pytest.raises(RecipeError, match=message):
        check_plan(*plan)
    with pytest.raises(RecipeError, match="no views"):
        make_folds(make_features(), balance=True)
