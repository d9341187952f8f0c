"""Time series as images, against the definitions computed value by value."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from tiny import tiny_backbone

from featcache.errors import DataError, RecipeError, UnknownName
from featcache.extraction.extract import extract
from featcache.images.decode import decode
from featcache.images.sources import open_images
from featcache.images.timeseries import (
    Encoding,
    angular_field,
    is_there,
    markov_field,
    parse,
    read_series,
)


def walk(seed, length=40):
    return np.cumsum(np.random.default_rng(seed).normal(size=length))


def write(path, rows, labels=None, separator="\t"):
    labels = labels or [str(1 + i % 2) for i in range(len(rows))]
    lines = [
        separator.join([y, *map(repr, map(float, row))])
        for y, row in zip(labels, rows, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(spec, **options):
    return open_images(f"series:{spec}", cache=None, **options)


def plain_markov(series, bins):
    """Wang & Oates (2015), section 2.2, in loops."""
    edges = [float(np.quantile(series, q / bins)) for q in range(1, bins)]
    state = [sum(value > edge for edge in edges) for value in series]
    moves = [[0.0] * bins for _ in range(bins)]
    for a, b in pairwise(state):
        moves[a][b] += 1
    for row in moves:
        total = sum(row) or 1.0
        row[:] = [count / total for count in row]
    return np.array([[moves[a][b] for b in state] for a in state])


def plain_angles(series, combine):
    """Section 2.1: scaled to -1 … 1, as the cosines of angles."""
    low, high = min(series), max(series)
    angles = [math.acos(max(-1, min(1, ((v - high) + (v - low)) / (high - low)))) for v in series]
    return np.array([[combine(a, b) for b in angles] for a in angles])


def windows(series, size):
    bounds = [int(len(series) * i / size) for i in range(size + 1)]
    return bounds[:-1], bounds[1:]


@pytest.mark.parametrize("bins", [2, 4, 8])
def test_markov_field_of_full_size(bins):
    series = walk(0)
    np.testing.assert_allclose(
        markov_field(series, 40, bins), plain_markov(series, bins), atol=1e-12
    )


@pytest.mark.parametrize("size", [20, 13, 7, 1])
def test_a_smaller_markov_field_is_the_mean_of_its_windows(size):
    series = walk(1)
    full = plain_markov(series, 8)
    begin, end = windows(series, size)
    expected = [[full[a:b, c:d].mean() for c, d in zip(begin, end, strict=True)]
                for a, b in zip(begin, end, strict=True)]  # fmt: skip
    np.testing.assert_allclose(markov_field(series, size, 8), expected, atol=1e-12)


def test_markov_field_by_hand():
    """Low, high, low, low: of three moves, low goes to high and to low once, high to low once."""
    field = markov_field(np.array([0.0, 1.0, 0.0, 0.0]), 4, 2)
    low, high = [0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 1.0, 1.0]
    low[1] = 0.5
    np.testing.assert_allclose(field, [low, high, low, low])


def test_repeated_values_share_a_bin():
    field = markov_field(np.repeat([1.0, 2.0, 1.0], [10, 3, 10]), 23, 8)
    assert np.isfinite(field).all()
    np.testing.assert_allclose(field[0, 0], 18 / 19)  # nineteen moves from 1, one of them to 2


@pytest.mark.parametrize("summation", [True, False])
def test_angular_fields(summation):
    series = walk(2)
    combine = (lambda a, b: math.cos(a + b)) if summation else (lambda a, b: math.sin(a - b))
    ours = angular_field(series, 40, summation) * 2 - 1
    np.testing.assert_allclose(ours, plain_angles(series, combine), atol=1e-7)


def test_a_smaller_angular_field_is_that_of_the_windows_means():
    series = walk(3)
    begin, end = windows(series, 13)
    means = [series[a:b].mean() for a, b in zip(begin, end, strict=True)]
    ours = angular_field(series, 13, True) * 2 - 1
    np.testing.assert_allclose(ours, plain_angles(means, lambda a, b: math.cos(a + b)), atol=1e-7)


def test_angular_fields_by_hand():
    """0, 1, 2 are the cosines -1, 0, 1: angles of 180, 90 and 0 degrees."""
    series = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(
        angular_field(series, 3, True) * 2 - 1, [[1, 0, -1], [0, -1, 0], [-1, 0, 1]], atol=1e-12
    )
    np.testing.assert_allclose(
        angular_field(series, 3, False) * 2 - 1, [[0, 1, 0], [-1, 0, 1], [0, -1, 0]], atol=1e-12
    )


def test_pixels_are_the_field_in_255_steps():
    series = walk(4)
    found = Encoding(size=20).picture(series[None])
    assert (found.dtype, found.shape) == (np.uint8, (20, 20))
    np.testing.assert_array_equal(found, np.floor(markov_field(series, 20, 8) * 255 + 0.5))
    half = Encoding(("gadf",)).picture(series[None])
    assert set(np.diag(half).tolist()) == {128}  # 0 is in the middle, on every machine


def test_scale_and_offset_do_not_matter():
    series = walk(5)
    for method in ("mtf", "gasf", "gadf"):
        one, other = (Encoding((method,)).picture(s[None]) for s in (series, series * 8 + 16))
        np.testing.assert_array_equal(one, other)


def test_channels_are_colours():
    series = np.stack([walk(i) for i in range(3)])
    image = Encoding(size=10).picture(series)
    assert image.shape == (10, 10, 3)
    for i in range(3):
        np.testing.assert_array_equal(image[..., i], Encoding(size=10).picture(series[i : i + 1]))
    two = Encoding(size=10).picture(series[:2])
    np.testing.assert_array_equal(two[..., :2], image[..., :2])
    assert not two[..., 2].any()


def test_methods_are_colours():
    series = walk(6)[None]
    image = Encoding(("mtf", "gasf", "gadf")).picture(series)
    for i, method in enumerate(("mtf", "gasf", "gadf")):
        np.testing.assert_array_equal(image[..., i], Encoding((method,)).picture(series))


class TestSource:
    def test_a_file(self, tmp_path):
        path = write(tmp_path / "GunPoint.tsv", [walk(i) for i in range(6)])
        images = opened(path)
        assert images.name == "GunPoint-mtf"
        assert images.labels.tolist() == ["1", "2"] * 3
        assert images.ids.tolist()[:2] == ["all/000000", "all/000001"]
        assert len(set(images.sha256.tolist())) == 6
        np.testing.assert_array_equal(images.read(1), Encoding().picture(walk(1)[None]))
        assert decode(images.read(1)).size == (40, 40)

    def test_train_and_test(self, tmp_path):
        write(tmp_path / "Coffee_TRAIN.tsv", [walk(i) for i in range(4)])
        write(tmp_path / "Coffee_TEST.tsv", [walk(i) for i in range(4, 6)])
        for spec in (tmp_path / "Coffee_TRAIN.tsv", tmp_path / "Coffee_TEST.tsv", tmp_path):
            images = opened(spec)
            assert images.split.tolist() == ["train"] * 4 + ["test"] * 2
            assert images.ids.tolist()[3:5] == ["train/000003", "test/000000"]
            assert images.name == "Coffee-mtf"
            np.testing.assert_array_equal(images.read(4), Encoding().picture(walk(4)[None]))

    def test_options_change_pixels_and_name(self, tmp_path):
        path = write(tmp_path / "a.csv", [walk(i) for i in range(3)], separator=",")
        found = {
            spec: opened(f"{path}{spec}")
            for spec in ("", ":method=gasf", ":method=gadf:size=16", ":bins=4", ":method=mtf+gasf")
        }
        assert [images.name for images in found.values()] == [
            "a-mtf", "a-gasf", "a-gadf-16", "a-mtf-4bins", "a-mtf+gasf"
        ]  # fmt: skip
        assert len({images.sha256[0] for images in found.values()}) == 5
        assert found[":method=gadf:size=16"].read(0).shape == (16, 16)
        assert found[":method=mtf+gasf"].read(0).shape == (40, 40, 3)
        assert opened(path, name="mine").name == "mine"

    def test_digests_are_those_of_the_pixels(self, tmp_path):
        """A change here makes every cached vector of a series useless."""
        path = write(tmp_path / "a.csv", [np.arange(16) % 5 + np.arange(16) / 16], separator=",")
        digests = {m: opened(f"{path}:method={m}").sha256[0][:12] for m in ("mtf", "gasf", "gadf")}
        assert digests == {
            "mtf": "ba64bf1ed217", "gasf": "295cf62ade3d", "gadf": "01b81ad213af"
        }  # fmt: skip

    def test_long_series_make_images_of_224(self, tmp_path):
        path = write(tmp_path / "a.csv", [walk(0, 1000)])
        assert opened(path).read(0).shape == (224, 224)

    def test_features_are_extracted_once(self, tmp_path, cache):
        path = write(tmp_path / "a.csv", [walk(i) for i in range(8)])
        seen = []
        for _ in range(2):
            images = open_images(f"series:{path}:size=16", cache=cache)
            extract(images, backbone=tiny_backbone(called=seen.append), cache=cache)
        first = len(seen)
        extract(images, backbone=tiny_backbone(called=seen.append), cache=cache)
        assert len(seen) == first

    @pytest.mark.parametrize(
        ("spec", "kind", "message"),
        [
            (":method=mft", UnknownName, "Did you mean mtf"),
            (":method=", UnknownName, "unknown method"),
            (":colour=red", UnknownName, "unknown option of series 'colour'"),
            (":size=big", RecipeError, "size 'big' is no number"),
            (":size=1", RecipeError, "no number above 1"),
            (":size=41", RecipeError, "size 41 is more than the 40 values"),
            (":bins=1", RecipeError, "bins '1'"),
            (":method=mtf+gasf+gadf+mtf", DataError, "4 planes"),
        ],
    )
    def test_options_that_make_no_sense(self, tmp_path, spec, kind, message):
        path = write(tmp_path / "a.csv", [walk(0)])
        with pytest.raises(kind, match=message) as caught:
            opened(f"{path}{spec}")
        assert caught.value.remedy

    def test_no_file_named(self):
        with pytest.raises(RecipeError, match="no file named"):
            opened("")
        with pytest.raises(DataError, match=r"no file 'no/such\.tsv'"):
            opened("no/such.tsv")

    def test_groups_need_a_column(self, tmp_path):
        with pytest.raises(DataError, match="no column 'patient'"):
            opened(write(tmp_path / "a.csv", [walk(0)]), group="patient")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (np.nan, r"1 of 3 series hold NaN or infinite values \(the first: number 2\)"),
            (np.inf, "NaN or infinite"),
        ],
    )
    def test_values_that_are_no_numbers(self, tmp_path, change, message):
        rows = [walk(i) for i in range(3)]
        rows[1][-1] = change
        with pytest.raises(DataError, match=message) as caught:
            opened(write(tmp_path / "a.tsv", rows))
        assert "Missing_value_and_variable_length_datasets_adjusted" in caught.value.remedy

    def test_constant_series(self, tmp_path):
        rows = [walk(0), np.full(40, 2.5)]
        with pytest.raises(DataError, match=r"1 of 2 series are constant.*number 2"):
            opened(write(tmp_path / "a.tsv", rows))

    def test_short_series(self, tmp_path):
        with pytest.raises(DataError, match="series of 7 values are too short"):
            opened(write(tmp_path / "a.tsv", [walk(0, 7)]))

    def test_more_channels_than_colours(self, tmp_path):
        np.savez(tmp_path / "a.npz", X=np.random.default_rng(0).normal(size=(2, 4, 20)), y=[0, 1])
        with pytest.raises(DataError, match="4 channels by 1 methods make 4 planes"):
            opened(tmp_path / "a.npz")


def test_a_path_may_hold_colons_and_spaces(tmp_path):
    path = write(tmp_path / "a: b" / "c.tsv", [walk(0)])
    assert parse(f"{path}:size=16") == (str(path), Encoding(size=16))
    assert len(opened(f"{path}:size=16")) == 1
    assert is_there(f"series:{path}:size=16")
    assert not is_there(f"series:{path}x")
    assert not is_there("digits")


# Files of time series in the forms that they come in.

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
