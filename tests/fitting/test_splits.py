import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import DataError, RecipeError, UnknownName
from featcache.fitting.splits import (
    components,
    describe_folds,
    folds_from_json,
    folds_to_json,
    make_folds,
)

from .conftest import make_features


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
