import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featcache.errors import DataError, RecipeError, UnknownName
from featcache.fitting import splits as module
from featcache.fitting import stratified
from featcache.fitting.evaluate import evaluate
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.splits import (
    balanced,
    check_plan,
    components,
    describe_folds,
    factorize,
    folds_from_json,
    folds_to_json,
    hold_out,
    inner_folds,
    make_folds,
    only_images,
    stratified_groups,
)

from .conftest import add_views, make_features


def covers(folds, n):
    return sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(n))


def test_five_stratified_folds_by_default(features):
    folds = make_folds(features)
    assert [fold.name for fold in folds] == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    assert covers(folds, 120)
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(120))
        assert np.unique(features.y[fold.test], return_counts=True)[1].tolist() == [8, 8, 8]


def test_seeds(features):
    def tests(seed):
        return [fold.test.tolist() for fold in make_folds(features, seed=seed)]

    assert tests(0) == tests(0)
    assert tests(0) != tests(1)


@pytest.mark.parametrize(
    "how",
    [{}, {"repeats": 2}, {"leaky": True}, {"balance": True}, {"balance": True, "leaky": True}],
)
@pytest.mark.parametrize("own", [False, True])
def test_the_order_of_the_rows_moves_no_image_to_another_fold(how, own):
    rng = np.random.default_rng(3)
    plain = make_features(
        n=60,
        groups=[f"g{i}" if i < 25 else "" for i in rng.integers(50, size=60)],
        sha256=[str(i) for i in rng.integers(200, size=60)],
        split=np.where(np.arange(60) % 4 == 0, "test", "train") if own else None,
    )
    plain = replace(plain, y=np.where(np.arange(60) < 40, "cat", "dog"))
    features = add_views(plain, "rot90", "hflip")
    shuffled = add_views(plain.rows(rng.permutation(60)), "rot90", "hflip")
    if own and "repeats" in how:
        return
    first, second = (
        folds_to_json(make_folds(one, None if own else 3, seed=1, **how), one)
        for one in (features, shuffled)
    )
    assert first == second  # in the same order too
    assert features.ids[np.argsort(features.ids)].tolist() != shuffled.ids.tolist()


def test_rows_that_are_sorted_keep_the_folds_that_they_had(features):
    wanted = StratifiedKFold(5, shuffle=True, random_state=7)
    for fold, (train, test) in zip(
        make_folds(features, 5, seed=7), wanted.split(features.X, features.y), strict=True
    ):
        assert (fold.train.tolist(), fold.test.tolist()) == (train.tolist(), test.tolist())


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_the_rows_changes_no_prediction(grouped):
    groups = [f"g{i // 4}" for i in range(120)] if grouped else None
    features = make_features(signal=0.6, groups=groups)
    shuffled = features.rows(np.random.default_rng(0).permutation(120))
    classifier = make_classifier("concat", "mlp", settings={"mlp.epochs": 4, "mlp.hidden": 8})
    first, second = (evaluate(classifier, one, folds=3) for one in (features, shuffled))
    for one, other in zip(first.folds, second.folds, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_array_equal(one.proba, other.proba)


def test_own_split():
    split = ["train"] * 60 + ["val"] * 20 + [""] * 10 + ["test"] * 30
    (fold,) = make_folds(make_features(split=split))
    assert fold.name == "test"
    assert fold.test.tolist() == list(range(90, 120))
    assert fold.train.tolist() == list(range(90))


def test_val_without_test(caplog):
    split = ["train"] * 90 + ["val"] * 30
    with caplog.at_level(logging.INFO, "featcache"):
        (fold,) = make_folds(make_features(split=split))
    assert fold.name == "val"
    assert fold.test.tolist() == list(range(90, 120))
    assert "tested on 30 val rows" in caplog.text


def test_folds_asked_for_go_over_all_rows():
    features = make_features(split=["train"] * 90 + ["test"] * 30)
    assert covers(make_folds(features, folds=3), 120)
    assert len(make_folds(features, test_split=False)) == 5
    with pytest.raises(RecipeError, match="both"):
        make_folds(features, folds=3, test_split=True)


def test_own_split_asked_for_and_absent(features):
    with pytest.raises(DataError, match="no test split"):
        make_folds(features, test_split=True)


def test_own_split_without_training_rows():
    with pytest.raises(DataError, match="the test split has all there is, 120 rows"):
        make_folds(make_features(split=["test"] * 120))


@settings(max_examples=40)
@given(data=st.data(), k=st.integers(2, 4))
def test_folds_never_split_groups_or_duplicates(data, k):
    n = 60
    groups = data.draw(st.lists(st.sampled_from(["", *"abcdefghij"]), min_size=n, max_size=n))
    sha256 = data.draw(st.lists(st.integers(0, 200).map(str), min_size=n, max_size=n))
    features = make_features(n=n, classes=("x", "y"), groups=groups, sha256=sha256)
    try:
        folds = make_folds(features, folds=k)
    except DataError:
        return
    assert covers(folds, n)
    for fold in folds:
        for row in fold.test:
            for other in fold.train:
                assert sha256[row] != sha256[other]
                assert groups[row] == "" or groups[row] != groups[other]


def test_chains_are_one_component():
    features = make_features(
        n=6, groups=["a", "a", "b", "", "", ""], sha256=["1", "2", "2", "3", "3", "4"]
    )
    linked = components(features)
    assert len({*linked[:3]}) == 1
    assert linked[3] == linked[4]
    assert len(np.unique(linked)) == 3
    assert len(np.unique(components(features, groups=False))) == 4


def test_group_image_ignores_the_groups():
    features = make_features(n=60, groups=[str(i // 30) for i in range(60)])
    assert covers(make_folds(features, folds=5, group="image"), 60)
    with pytest.raises(DataError, match="class 'cat' has 2 groups, fewer than 5 folds"):
        make_folds(features, folds=5)
    assert len(make_folds(features, folds=2, group="subject")) == 2


def test_group_subject_without_groups(features):
    with pytest.raises(DataError, match="no groups"):
        make_folds(features, group="subject")
    with pytest.raises(UnknownName, match="subjekt"):
        make_folds(features, group="subjekt")


def test_one_class():
    with pytest.raises(DataError, match="only one class"):
        make_folds(make_features(classes=("cat",)))


def test_class_with_fewer_images_than_folds():
    features = make_features(n=20).rows(np.array([i for i in range(20) if i % 3 != 2 or i < 6]))
    with pytest.raises(DataError, match="class 'owl' has 2 images, fewer than 5") as caught:
        make_folds(features)
    assert "Ask for 2 folds" in caught.value.remedy


def test_fewer_samples_than_folds():
    with pytest.raises(DataError, match="2 samples can't fill 5 folds"):
        make_folds(make_features(n=2))
    with pytest.raises(RecipeError, match="1 fold"):
        make_folds(make_features(n=2), folds=1)


def test_json_round_trip(features):
    folds = make_folds(features, folds=3)
    saved = json.loads(json.dumps(folds_to_json(folds, features)))
    shuffled = features.rows(np.random.default_rng(0).permutation(120))
    for one, other in zip(folds, folds_from_json(saved, shuffled), strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(features.ids[one.train], shuffled.ids[other.train])
        np.testing.assert_array_equal(features.ids[one.test], shuffled.ids[other.test])
    with pytest.raises(DataError, match=r"lack 60 ids of the saved folds: img"):
        folds_from_json(saved, features.rows(np.arange(100)))


def test_repeats_shuffle_anew_and_begin_with_the_seed_s_own_folds(features):
    folds = make_folds(features, folds=3, repeats=4, seed=7)
    assert [fold.name for fold in folds[:4]] == [
        "repeat1.fold1", "repeat1.fold2", "repeat1.fold3", "repeat2.fold1",
    ]  # fmt: skip
    assert len({fold.name for fold in folds}) == 12
    for repeat in range(4):
        assert covers(folds[3 * repeat : 3 * repeat + 3], 120)
    assert len({tuple(fold.test.tolist()) for fold in folds}) == 12
    for one, other in zip(make_folds(features, folds=3, seed=7), folds, strict=False):
        np.testing.assert_array_equal(one.test, other.test)


def test_how_folds_are_called(features):
    own = make_features(split=["train"] * 90 + ["test"] * 30)
    assert describe_folds(make_folds(own)) == "test split"
    assert describe_folds(make_folds(features)) == "5 folds"
    assert describe_folds(make_folds(features, folds=3, repeats=2)) == "2 x 3 folds"
    assert describe_folds(make_folds(own, leaky=True)) == "test split, leaky"


def test_repeats_of_the_own_split_make_no_sense():
    features = make_features(split=["train"] * 90 + ["test"] * 30)
    with pytest.raises(RecipeError, match="3 repeats of the data's own test split"):
        make_folds(features, repeats=3)
    assert len(make_folds(features, folds=4, repeats=3)) == 12


def test_a_group_column_with_one_group():
    features = make_features(groups=["ward"] * 120)
    with pytest.raises(DataError, match="or a single one"):
        make_folds(features, group="subject")
    with pytest.raises(DataError, match="class 'cat' has 1 group, fewer than 5 folds"):
        make_folds(features)


def test_groups_of_one_class_each_are_spread():
    groups = [f"{'cdo'[i % 3]}{i // 3 % 8}" for i in range(120)]
    features = make_features(groups=groups)
    for fold in make_folds(features, folds=4):
        assert np.unique(features.y[fold.test], return_counts=True)[1].tolist() == [10, 10, 10]


def test_a_label_only_in_the_test_split_is_said(caplog):
    features = make_features(
        n=30, split=["test" if i % 3 == 2 or i > 20 else "" for i in range(30)]
    )
    (fold,) = make_folds(features)
    assert "label 'owl' is only in the test rows" in caplog.text
    assert set(features.y[fold.train]) == {"cat", "dog"}


def test_leaky_folds_keep_saying_so_on_disk(features):
    folds = make_folds(features, folds=3, leaky=True)
    saved = json.loads(json.dumps(folds_to_json(folds, features)))
    assert all(fold.leaky for fold in folds_from_json(saved, features))
    assert "leaky" not in folds_to_json(make_folds(features), features)[0]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(features, seed):
    with pytest.raises(RecipeError, match=f"seed is {seed}"):
        make_folds(features, 3, seed=seed)
    assert len(make_folds(features, 3, seed=2**32 - 1)) == 3


# Views of an image stay on one side of a split.


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
    features = add_views(plain, "hflip", "rot90")
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
    for one, other in zip(make_folds(plain), make_folds(add_views(plain, "hflip")), strict=True):
        np.testing.assert_array_equal(one.test, other.test)
        np.testing.assert_array_equal(one.train, other.train[: len(one.train)])


def test_the_data_s_own_split_tests_no_views():
    plain = make_features(split=["train"] * 90 + ["test"] * 30)
    (fold,) = make_folds(add_views(plain, "hflip"))
    assert fold.test.tolist() == list(range(90, 120))
    assert sorted(fold.train) == [*range(90), *range(120, 210)]


def test_balance_fills_every_class_up_in_every_fold():
    features = add_views(uneven((40, 24, 16)), "hflip", "rot90")
    for fold in make_folds(features, folds=4, balance=True):
        y, view = features.y[fold.train], features.view[fold.train]
        images = {c: int(((y == c) & (view == "none")).sum()) for c in np.unique(y)}
        assert images == {"cat": 30, "dog": 18, "owl": 12}
        assert np.unique(y, return_counts=True)[1].tolist() == [30, 30, 30]
        assert not (view[y == "cat"] != "none").any()


def test_balance_follows_from_the_seed():
    features = add_views(uneven((40, 24, 16)), "hflip", "rot90")

    def train(seed, folds):
        return [sorted(f.train) for f in make_folds(features, folds, balance=True, seed=seed)]

    assert train(0, 4) == train(0, 4)
    assert train(0, 4) != train(1, 4)


def test_too_few_views_are_said_in_one_line(caplog):
    features = add_views(uneven((40, 24, 8)), "hflip")
    with caplog.at_level(logging.WARNING, "featcache"):
        folds = make_folds(features, folds=4, balance=True)
    assert len(caplog.records) == 1
    assert "'owl' has 12 of 30 in fold1" in caplog.text
    counts = np.unique(features.y[folds[0].train], return_counts=True)[1]
    assert counts.tolist() == [30, 30, 12]


def test_leaky_folds_deal_every_row_as_if_it_stood_alone():
    features = add_views(make_features(groups=[f"g{i // 2}" for i in range(120)]), "hflip")
    folds = make_folds(features, folds=4, leaky=True)
    assert all(fold.leaky for fold in folds)
    assert describe_folds(folds) == "4 folds, leaky"
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(240))
    first = folds[0]
    assert (features.view[first.test] == "hflip").any()
    assert set(features.sources[first.test]) & set(features.sources[first.train])


def test_leaky_and_balanced_fills_up_before_the_split():
    features = add_views(uneven((40, 24, 16)), "hflip", "rot90")
    folds = make_folds(features, folds=4, balance=True, leaky=True)
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == sorted(balanced(features, 0))
    assert np.unique(features.y[tested], return_counts=True)[1].tolist() == [40, 40, 40]


def test_leaky_scores_are_better_than_honest_ones_where_there_is_nothing_to_learn():
    """One's own image among the neighbours gives the label away."""
    from sklearn.neighbors import KNeighborsClassifier

    features = add_views(make_features(signal=0.0, n=150), "hflip", "rot90")
    near = KNeighborsClassifier(1)
    honest = evaluate(near, features, folds=5).metrics["accuracy"]
    leaky = evaluate(near, features, split=make_folds(features, 5, leaky=True))
    assert honest < 0.5
    assert leaky.metrics["accuracy"] > 0.9


def test_training_images_are_counted_without_their_views():
    features = add_views(make_features(), "hflip", "rot90")
    (first, *_) = evaluate(_logreg(), features, folds=4).folds
    assert (first.train_size, first.train_images) == (270, 90)


def _logreg():
    from featcache.fitting.pipeline import make_classifier

    return make_classifier("concat", "logreg")


def test_only_images():
    plain = make_features()
    assert only_images(plain) is plain
    np.testing.assert_array_equal(only_images(add_views(plain, "hflip")).X, plain.X)


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


# Stratified folds of whole groups.


def spread(fold, y, k):
    """The widest gap, over classes, between the folds' counts of one class."""
    counts = np.array([[((fold == f) & (y == c)).sum() for c in np.unique(y)] for f in range(k)])
    return int((counts.max(axis=0) - counts.min(axis=0)).max())


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 60), min_size=30, max_size=120),
    k=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_groups_are_whole_and_every_row_has_one_fold(groups, k, seed):
    groups = np.array(groups)
    y = np.array(["cat", "dog", "owl"])[np.arange(len(groups)) % 3]
    fold = stratified_groups(y, groups, k, seed)
    assert fold.shape == y.shape
    assert fold.min() >= 0
    assert fold.max() < k
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    np.testing.assert_array_equal(fold, stratified_groups(y, groups, k, seed))


def test_rows_that_stand_alone_level_the_folds():
    rng = np.random.default_rng(0)
    y = rng.choice(["a", "b", "c"], 1000, p=[0.7, 0.2, 0.1])
    groups = np.arange(1000)
    groups[:60] = np.repeat(np.arange(20), 3) + 2000
    fold = stratified_groups(y, groups, 5)
    assert spread(fold, y, 5) <= 1
    assert np.ptp(np.bincount(fold)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_as_even_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice(40, 600, p=rng.dirichlet(np.ones(40)))
    y = rng.choice(["a", "b", "c"], 600, p=[0.6, 0.3, 0.1])
    theirs = np.empty(600, int)
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    for i, (_, test) in enumerate(splitter.split(y, y, groups)):
        theirs[test] = i
    share = [
        np.array([np.mean(y[fold == f] == c) for f in range(4) for c in "abc"])
        for fold in (stratified_groups(y, groups, 4, seed), theirs)
    ]
    overall = np.tile([np.mean(y == c) for c in "abc"], 4)
    off, their_off = (np.abs(shares - overall).max() for shares in share)
    assert off < their_off + 0.03


def test_seeds_shuffle():
    y, groups = np.array(["a", "b"] * 50), np.arange(100) // 2
    assert not np.array_equal(
        stratified_groups(y, groups, 5, 0), stratified_groups(y, groups, 5, 1)
    )


def test_only_rows_with_a_partner_are_placed_one_by_one(monkeypatch):
    """What scikit-learn does with every row; for 60,000 of them that takes it 9 s."""
    placed, plain = [], stratified._largest_first

    def counted(codes, *rest):
        placed.append(len(codes))
        return plain(codes, *rest)

    monkeypatch.setattr(stratified, "_largest_first", counted)
    y = np.array([f"c{i}" for i in range(10)])[np.arange(60_000) % 10]
    groups = np.arange(60_000)
    groups[7] = 59_999
    fold = stratified_groups(y, groups, 5)
    assert placed == [2]
    assert fold[7] == fold[59_999]
    assert spread(fold, y, 5) <= 1


@pytest.mark.parametrize("groups", [None, np.arange(120) // 5])
def test_inner_folds_hold_every_row_out_once(groups):
    y = np.arange(120) % 4
    folds = inner_folds(y, groups, 3, 0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(120))
    for rest, held in folds:
        assert sorted([*rest, *held]) == list(range(120))
        assert set(y[rest]) == set(range(4))
        assert groups is None or not set(groups[rest]) & set(groups[held])


def test_a_class_too_rare_for_inner_folds():
    y = np.array(["a"] * 9 + ["b"] * 2)
    assert len(inner_folds(y, None, 3, 0)) == 2
    assert inner_folds(y[:-1], None, 3, 0) == []
    one_group = np.array([*range(9), 9, 9])  # the class "b" is on one side of each fold
    assert inner_folds(y, one_group, 3, 0) == []
    assert inner_folds(y, np.zeros(11), 3, 0) == []


def test_the_share_held_out_is_stratified():
    y = np.repeat([0, 1], [80, 20])
    train, held = hold_out(y, None, 0.1, 0)
    assert np.bincount(y[held]).tolist() == [8, 2]
    assert sorted([*train, *held]) == list(range(100))


def test_the_share_held_out_does_not_divide_groups():
    y = np.arange(400) % 4
    groups = np.arange(400) // 8
    train, held = hold_out(y, groups, 0.1, 0)
    assert sorted([*train, *held]) == list(range(400))
    assert not set(groups[train]) & set(groups[held])
    assert 24 <= len(held) <= 56
    assert set(y[held]) == set(range(4))
    one_group = hold_out(y, np.zeros(400), 0.1, 0)
    assert [len(rows) for rows in one_group] == [400, 0]


def test_a_group_can_bring_all_classes_into_a_small_share():
    y, groups = np.arange(12) % 3, np.arange(12) // 3  # a tenth of 12 rows can't have 3 classes
    assert len(hold_out(y, groups, 0.1, 0)[1]) == 0
    assert len(hold_out(y, groups, 0.1, 0, by_count=False)[1]) == 3


# Texts as numbers.


def same_parts(one, other):
    """Whether two numberings put the same rows together."""
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist()))


@pytest.mark.parametrize("at_once", [1, 7, 2**16])
def test_as_numpy_s_unique(monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    values = np.array(["", "a", "b", "ab", "ba", "é", "a" * 64])[rng.integers(0, 7, 200)]
    expected = np.unique(values, return_inverse=True)[1]
    found = factorize(values)
    assert sorted(set(found.tolist())) == list(range(7))
    assert same_parts(found, expected)
    assert same_parts(factorize(values[::2]), expected[::2])


def test_texts_with_one_digest_are_told_apart(monkeypatch):
    class Nothing:
        def integers(self, *_, size, dtype):
            return np.full(size, 2**62, dtype)  # twice that and 1: of equal weight for all places

    monkeypatch.setattr(np.random, "default_rng", lambda _: Nothing())
    values = np.array(["ab", "ba", "ab", "c"])
    assert same_parts(factorize(values), np.array([0, 1, 0, 2]))


def test_no_text():
    assert factorize(np.empty(0, np.str_)).shape == (0,)
