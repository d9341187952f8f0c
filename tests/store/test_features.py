from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import DataError, UnknownName
from featcache.store.features import Features, join

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def features(ids="abcd", widths=(2, 3), names=("one", "two"), seed=0):
    """Values that say which row and column they are, whatever the order of rows."""
    ids = list(ids)
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal(sum(widths)).astype(np.float32)
    values = np.array([hash(id_) % 1000 for id_ in ids], np.float32)[:, None] + columns
    return Features(
        X=values,
        y=np.array([f"y{id_}" for id_ in ids], np.str_),
        ids=np.array(ids, np.str_),
        sha256=np.array([f"s{id_}" for id_ in ids], np.str_),
        groups=np.array([f"g{id_}" for id_ in ids], np.str_),
        split=np.array([""] * len(ids), np.str_),
        blocks=tuple(widths),
        names=tuple(names),
        keys=tuple(f"key of {name}" for name in names),
    )


PER_ROW = ("y", "ids", "sha256", "groups", "split")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.array(["a"])}, "y has 1 row, ids has 4"),
        ({"split": np.array(["a"] * 5)}, "split has 5 rows"),
        ({"X": np.zeros((4, 4), np.float32)}, r"X has shape \(4, 4\), ids and blocks \(4, 5\)"),
        ({"X": np.zeros((3, 5), np.float32)}, r"X has shape \(3, 5\)"),
        ({"blocks": (2, 4)}, "X has shape"),
        ({"names": ("one",)}, "2 blocks, 1 name,"),
        ({"names": ("one", "one")}, "the same backbone twice"),
        ({"ids": np.array(list("abca"))}, "image ids repeat"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        replace(features(), **change)


def test_select_takes_blocks_in_the_order_given():
    both = features()
    swapped = both.select(["two", "one"])
    np.testing.assert_array_equal(swapped.X, np.hstack([both.X[:, 2:], both.X[:, :2]]))
    assert (swapped.blocks, swapped.names) == ((3, 2), ("two", "one"))
    assert swapped.keys == ("key of two", "key of one")
    np.testing.assert_array_equal(both.select(["two"]).X, both.X[:, 2:])
    assert both.select(both.names).X is both.X


def test_select_without_vectors_is_the_rest_and_takes_no_memory():
    both = features()
    whole, bare = both.select(["two", "one"]), both.select(["two", "one"], vectors=False)
    assert bare.X.shape == whole.X.shape
    assert bare.X.dtype == whole.X.dtype
    assert bare.X.base is not None
    assert bare.X.strides == (0, 0)
    for name in ("blocks", "names", "keys", "data"):
        assert getattr(bare, name) == getattr(whole, name)
    assert bare.digest() == whole.digest()


def test_select_refuses_what_is_not_there():
    with pytest.raises(UnknownName, match="Did you mean two"):
        features().select(["twoo"])
    with pytest.raises(DataError, match="no backbone"):
        features().select([])


@pytest.mark.parametrize(
    "index", [np.array([3, 0]), np.array([True, False, True, False]), np.array([], np.intp)]
)
def test_rows_keeps_every_column_aligned(index):
    whole = features()
    part = whole.rows(index)
    np.testing.assert_array_equal(part.X, whole.X[index])
    for name in PER_ROW:
        assert getattr(part, name).tolist() == getattr(whole, name)[index].tolist()
    assert (part.blocks, part.names, part.keys) == (whole.blocks, whole.names, whole.keys)


@given(st.lists(TEXT, unique=True, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_join_aligns_by_id_whatever_the_order(ids, random):
    one = features(ids, (2,), ("one",))
    two = features(ids, (3,), ("two",), seed=1)
    order = list(range(len(ids)))
    random.shuffle(order)
    joined = join([one, two.rows(np.array(order))])
    np.testing.assert_array_equal(joined.X, np.hstack([one.X, two.X]))
    for name in PER_ROW:
        assert getattr(joined, name).tolist() == getattr(one, name).tolist()
    assert (joined.blocks, joined.names) == ((2, 3), ("one", "two"))


def test_join_of_one_is_itself():
    assert join([features()]).X.shape == (4, 5)


def test_join_and_select_are_inverse():
    one, two = features(widths=(2,), names=("a",)), features(widths=(3,), names=("b",), seed=1)
    np.testing.assert_array_equal(join([one, two]).select(["b"]).X, two.X)


OTHER = features(widths=(3,), names=("other",))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (features("abcx", (3,), ("other",)), r"1 id only in the first, 1 only in the second"),
        (features("abc", (3,), ("other",)), r"1 id only in the first, 0 .*instance d"),
        (features("abcde", (3,), ("other",)), r"0 ids .* 1 only in the second .*instance e"),
        (replace(OTHER, y=np.array(["ya", "ZZ", "yc", "yd"])), "y of b is 'yb' .* 'ZZ' for other"),
        (replace(OTHER, sha256=np.array(list("wxyz"))), "sha256 of a"),
        (replace(OTHER, groups=np.array(list("wxyz"))), "groups of a"),
        (replace(OTHER, split=np.array(["train"] * 4)), "split of a"),
        (features(widths=(2,), names=("one",)), "the same backbone twice"),
    ],
)
def test_join_refuses_what_does_not_belong_together(part, message):
    with pytest.raises(DataError, match=message):
        join([features(), part])


def test_join_of_nothing():
    with pytest.raises(DataError, match="nothing to join"):
        join([])


@given(st.permutations(range(4)))
def test_digest_does_not_depend_on_the_order_of_rows(order):
    assert features().rows(np.array(order)).digest() == features().digest()


@pytest.mark.parametrize(
    "change",
    [
        *({name: np.array(list("pqrs"))} for name in PER_ROW),
        {"keys": ("key of one", "another")},
        {"names": ("one", "three")},
    ],
)
def test_digest_changes_with(change):
    assert replace(features(), **change).digest() != features().digest()


def test_digest_tells_two_rows_that_swap_labels():
    swapped = replace(features(), y=np.array(["yb", "ya", "yc", "yd"]))
    assert swapped.digest() != features().digest()
    assert features("abc").digest() != features("abcd").digest()


def test_views_and_trained_on_have_defaults_that_fit():
    plain = features()
    assert plain.view.tolist() == ["none"] * 4
    assert plain.sources is plain.ids
    assert plain.trained_on == ()
    with pytest.raises(DataError, match="view has 2 rows"):
        replace(plain, view=np.array(["none", "hflip"]))
    with pytest.raises(DataError, match="trained_on has 1 sets"):
        replace(plain, trained_on=(frozenset("s"),))


def test_join_keeps_what_each_block_was_trained_on():
    seen = replace(features(widths=(2,), names=("one",)), trained_on=(frozenset(["sa"]),))
    joined = join([seen, OTHER])
    assert joined.trained_on == (frozenset(["sa"]), frozenset())
    assert join([OTHER, features(widths=(2,), names=("one",))]).trained_on == ()


def test_joined_blocks_stand_in_one_order_whatever_that_of_the_parts():
    parts = [features(widths=(1, 2), names=("c", "a")), features("dbca", (3,), ("b",))]
    joined, other = join(parts), join([parts[1].rows(np.array([3, 1, 2, 0])), parts[0]])
    assert joined.names == other.names == ("a", "b", "c")
    assert joined.blocks == (2, 3, 1)
    np.testing.assert_array_equal(joined.X, other.X)
    np.testing.assert_array_equal(joined.select(["c", "a"]).X, parts[0].X)
    assert joined.digest() == other.digest()
