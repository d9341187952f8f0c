"""Files of time series in the forms that they come in."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.errors import DataError
from featcache.images.timeseries import read_series

ROWS = [[1.5, -2.0, 3e-3], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.tsv", "1\t1.5\t-2\t3e-3\n2\t4\t5\t6\n"),
        ("a.csv", "1,1.5,-2,3e-3\n2,4,5,6\n"),
        ("a.csv", "class,t0,t1,t2\n1,1.5,-2,3e-3\n2,4,5,6"),
        ("a.csv", "\ufeff1;1.5;-2;3e-3\r\n2;4;5;6\r\n\r\n"),
        ("a.txt", "  1.0000000e+00   1.5000000e+00 -2.0 0.003\n  2.0e+00  4   5 6\n"),
        ("a", "1,1.5,-2,0.003\n2,4,5,6\n"),
    ],
)
def test_tables(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8")
    found = read_series(tmp_path / file)
    assert found.name == "a"
    assert found.labels == ["1", "2"]
    np.testing.assert_array_equal(found.values, np.array(ROWS)[:, None])


def test_labels_are_kept_as_text(tmp_path):
    (tmp_path / "a.csv").write_text("normal,1,2\n-1,3,4\n1.5,5,6\nnan,7,8\n")
    assert read_series(tmp_path / "a.csv").labels == ["normal", "-1", "1.5", "nan"]


@pytest.mark.parametrize("shape", [(4, 9), (4, 1, 9), (4, 2, 9)])
def test_npz(tmp_path, shape):
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.savez(tmp_path / "a.npz", X=X, y=[0, 1, 1, 0], split=["train"] * 3 + ["test"],
             group=["p1", "p1", "p2", "p3"])  # fmt: skip
    found = read_series(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.values, X.reshape(4, -1, 9).astype(np.float64))
    assert found.labels == ["0", "1", "1", "0"]
    assert found.split == ["train"] * 3 + ["test"]
    assert found.groups == ["p1", "p1", "p2", "p3"]


@pytest.mark.parametrize("names", [("A_TRAIN.tsv", "A_TEST.tsv"), ("a_train", "a_test"),
                                   ("A_TRAIN.npz", "A_TEST.npz")])  # fmt: skip
def test_both_halves_whichever_is_named(tmp_path, names):
    for i, name in enumerate(names):
        if name.endswith(".npz"):
            np.savez(tmp_path / name, X=np.full((2, 5), i), y=[0, 1])
        else:
            (tmp_path / name).write_text(f"0 {i} {i} {i}\n1 {i} {i} {i}\n")
    for path in (tmp_path / names[0], tmp_path / names[1], tmp_path):
        found = read_series(path)
        assert found.split == ["train", "train", "test", "test"]
        assert found.values[:, 0, 0].tolist() == [0, 0, 1, 1]
        assert found.name == names[0][:1]


def test_one_half_alone_has_no_split(tmp_path):
    (tmp_path / "A_TRAIN.tsv").write_text("0\t1\t2\n")
    assert read_series(tmp_path / "A_TRAIN.tsv").split == [""]


def test_the_archives_folder_has_the_same_in_several_forms(tmp_path):
    for ending in ("arff", "ts", "tsv"):
        for half in ("TRAIN", "TEST"):
            (tmp_path / f"A_{half}.{ending}").write_text("0\t1\t2\n")
    assert len(read_series(tmp_path).labels) == 2


def test_a_folder_of_several_data_sets(tmp_path):
    for name in ("A", "B"):
        (tmp_path / f"{name}_TRAIN.tsv").write_text("0\t1\t2\n")
    with pytest.raises(DataError, match=r"there are A\.tsv, B\.tsv"):
        read_series(tmp_path)


def test_a_pickle_is_never_read(tmp_path):
    class Boom:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    np.savez(tmp_path / "a.npz", X=np.array([Boom()], dtype=object), y=[0])
    with pytest.raises(DataError, match="can't be read as time series"):
        read_series(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "\n  \n", "is empty"),
        ("a.tsv", "1\t2\t3\n1\t2\n", "line 2: 1 value, and 2 above"),
        ("a.tsv", "1\t2\t3\n1\t2\tx\n", "line 2: not all cells after the label are numbers"),
        ("a.csv", "1,2,\n1,2,3\n1,2,\n", "line 3: not all cells"),
        ("a.npz", "not a zip", "can't be read as time series"),
    ],
)
def test_files_that_make_no_sense(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_series(tmp_path / file)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00,1,2")
    with pytest.raises(DataError, match="can't be read as time series"):
        read_series(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((2, 9))}, "no array 'y'"),
        ({"y": [0]}, "no array 'X'"),
        ({"X": np.zeros((2, 9)), "y": [0]}, r"shape \(2, 9\), and y has 1 label"),
        ({"X": np.zeros(9), "y": [0] * 9}, "X has shape"),
        ({"X": np.full((2, 9), "a"), "y": [0, 1]}, "X is <U1"),
        ({"X": np.zeros((1, 9)), "y": [0], "split": ["later"]}, "'later' is no split"),
        ({"X": np.zeros((2, 9)), "y": [0, 1], "group": ["a"]}, "group has 1"),
    ],
)
def test_archives_that_make_no_sense(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_series(tmp_path / "a.npz")
    assert __import__("re").search(message, str(caught.value))


def test_halves_of_different_lengths(tmp_path):
    (tmp_path / "A_TRAIN.tsv").write_text("0\t1\t2\n")
    (tmp_path / "A_TEST.tsv").write_text("0\t1\t2\t3\n")
    with pytest.raises(DataError, match="series of 1 × 2 and 1 × 3 values"):
        read_series(tmp_path)
