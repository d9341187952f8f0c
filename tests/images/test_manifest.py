from __future__ import annotations

import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import tiny_images

from featcache.errors import DataError
from featcache.images import manifest
from featcache.images.manifest import (
    Images,
    check_name,
    from_arrays,
    read_images_csv,
    split_name,
    strings,
    subsample,
    write_images_csv,
)

PER_ROW = ("ids", "sha256", "labels", "groups", "split", "size", "mtime_ns")

# numpy drops NULs at the end of a text; no path can hold one.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)

digest = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def manifests(draw):
    ids = draw(st.lists(text, unique=True, max_size=6))
    n = len(ids)

    def column(values):
        return strings(draw(st.lists(values, min_size=n, max_size=n)))

    numbers = [
        np.array(draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n)), np.int64)
        for _ in range(2)
    ]
    return Images(
        "data", strings(ids), column(digest), column(text), column(text),
        column(st.sampled_from(["train", "val", "test", ""])), size=numbers[0],
        mtime_ns=numbers[1],
    )  # fmt: skip


@given(manifests())
@example(replace(from_arrays("d", [np.zeros((2, 2), np.uint8)], ids=["a\rb,\n\"c'"], labels=["x"]),
                 labels=strings(["\r"]), size=np.zeros(1, np.int64),
                 mtime_ns=np.zeros(1, np.int64)))  # fmt: skip
def test_images_csv_reads_back(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("csv") / "images.csv"
    write_images_csv(path, images)
    back = read_images_csv(path, "data")
    for name in PER_ROW:
        assert getattr(back, name).tolist() == getattr(images, name).tolist()
    assert sorted(p.name for p in path.parent.iterdir()) == ["images.csv", "origin.json"]


def test_images_csv_reads_plainly(tmp_path):
    import pandas as pd

    write_images_csv(tmp_path / "images.csv", small())
    frame = pd.read_csv(tmp_path / "images.csv", dtype=str, keep_default_na=False)
    assert list(frame) == ["id", "sha256", "label", "group", "split", "size", "mtime_ns"]
    assert frame["label"].tolist() == ["cat", "NA", ""]


def test_dhash_is_kept_and_lists_without_it_are_read(tmp_path):
    path = tmp_path / "images.csv"
    dhash = np.arange(96, dtype=np.uint8).reshape(3, 32)
    dhash[1] = 0  # not known
    write_images_csv(path, replace(small(), dhash=dhash))
    header, *lines = path.read_text().splitlines()
    assert header == "id,sha256,label,group,split,size,mtime_ns,dhash"
    assert [line.rpartition(",")[2] for line in lines] == [
        dhash[0].tobytes().hex(), "", dhash[2].tobytes().hex()
    ]  # fmt: skip
    back = read_images_csv(path, "small")
    assert (back.dhash == dhash).all()
    assert (subsample(back, 1).dhash == dhash).all()
    write_images_csv(path, small())
    assert read_images_csv(path, "small").dhash.shape == (0, 32)


def test_dhash_for_each_image_or_none():
    with pytest.raises(DataError, match="dhash has 2 rows, ids has 3"):
        replace(small(), dhash=np.zeros((2, 32), np.uint8))


def small(**changes):
    arrays = [np.full((2, 2), i, np.uint8) for i in range(3)]
    return from_arrays("small", arrays, ids=list("abc"), labels=["cat", "NA", ""], **changes)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"id,label\na,cat\n",
        b"id,sha256,label,group,split,size,mtime_ns\na,b\n",
        f"id,sha256,label,group,split,size,mtime_ns\na,{DIGEST},x,,,big,0\n".encode(),
        f"id,sha256,label,group,split,size,mtime_ns\na,{DIGEST},x,,,{10**30},0\n".encode(),
        b"id,sha256,label,group,split,size,mtime_ns\na,1.2E+63,x,,,0,0\n",
        ("id,sha256,label,group,split,size,mtime_ns\n" + f"a,{DIGEST},x,,,0,0\n" * 2).encode(),
        f"id,sha256,label,group,split,size,mtime_ns\na,{DIGEST},x,,Test,0,0\n".encode(),
        f"id,sha256,label,group,split,size,mtime_ns,dhash\na,{DIGEST},x,,,0,0,1f\n".encode(),
        f"id,sha256,label,group,split,size,mtime_ns,dhash\na,{DIGEST},x,,,0,0\n".encode(),
        b"id,sha256,label,group,split,size,mtime_ns\n\xff\xfe,b,c,,,0,0\n",
        b'id,sha256,label,group,split,size,mtime_ns\n"a' + b"x" * 200_000,
        np.random.default_rng(0).bytes(500),
    ],
    ids="empty header cells number overflow digest repeat split dhash seven utf8 field "
    "random".split(),
)
def test_a_damaged_images_csv_is_refused_with_a_remedy(tmp_path, content):
    path = tmp_path / "images.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        read_images_csv(path, "data")
    assert "Delete it" in caught.value.remedy


def test_a_manifest_from_the_cache_says_that_it_has_no_images(tmp_path):
    write_images_csv(tmp_path / "images.csv", small())
    with pytest.raises(DataError, match="knows no images"):
        read_images_csv(tmp_path / "images.csv", "small").read(0)


def test_columns_of_another_length_are_refused():
    with pytest.raises(DataError, match="labels has 2 rows, ids has 3"):
        replace(small(), labels=strings(["a", "b"]))


def test_a_split_that_is_none_is_refused_wherever_it_comes_from(tmp_path):
    with pytest.raises(DataError, match="'holdout' is no split"):
        small(split=["train", "holdout", ""])
    write_images_csv(tmp_path / "images.csv", small(split=["train", "", "test"]))
    text = (tmp_path / "images.csv").read_text().replace("test", "tset")
    (tmp_path / "images.csv").write_text(text)
    (tmp_path / "origin.json").unlink()  # or it would be seen as another than was written
    with pytest.raises(DataError, match="line 4: 'tset' is no split"):
        read_images_csv(tmp_path / "images.csv", "small")


def test_repeated_ids_are_refused_before_any_work():
    with pytest.raises(DataError, match="ids repeat"):
        replace(small(), ids=strings(["a", "b", "a"]))


def test_distinct_takes_the_first_of_each_content_in_order():
    images = replace(small(), sha256=strings(["b", "a", "b"]))
    assert images.distinct().tolist() == [0, 1]


def test_describe():
    images = small(split=["train", "train", "test"], groups=["p1", "p1", ""])
    assert images.describe() == "small: 3 images, 2 classes, 2 train, 1 test, 1 group"
    assert repr(images) == f"Images({images.describe()})"


@pytest.mark.parametrize(
    ("said", "meant"),
    [("Train", "train"), (" training ", "train"), ("valid", "val"), ("DEV", "val"),
     ("testing", "test"), ("", ""), ("trained", None), ("cat", None)],
)  # fmt: skip
def test_split_names(said, meant):
    assert split_name(said) == meant


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a:b", "a\0", "*"])
def test_names_that_are_no_folder_names_are_refused(name):
    with pytest.raises(DataError, match="data set's name"):
        check_name(name)


def test_odd_but_good_names():
    assert [check_name(n) for n in ("ISIC 2019", "Zellen-β", "a.b")] == [
        "ISIC 2019", "Zellen-β", "a.b",
    ]  # fmt: skip


# Arrays as images.


def test_equal_pixels_have_equal_digests_and_another_shape_another():
    a = np.arange(12, dtype=np.uint8)
    arrays = [a.reshape(3, 4), a.reshape(3, 4).copy(), a.reshape(4, 3)]
    images = from_arrays("x", arrays, ids=list("abc"), labels=["", "", ""])
    assert images.sha256[0] == images.sha256[1] != images.sha256[2]
    assert images.read(2) is arrays[2]
    assert images.groups.tolist() == images.split.tolist() == ["", "", ""]
    assert images.source == "memory"


def test_lengths_must_agree():
    with pytest.raises(DataError, match="sha256 has 1 row, ids has 2"):
        from_arrays("x", [np.zeros((2, 2), np.uint8)], ids=["a", "b"], labels=["", ""])


# Few images of each class: how many, of which splits, and under which name.


def _split(count: int = 60) -> list[str]:
    return ["test" if i % 6 == 5 else "train" for i in range(count)]


def test_each_class_has_at_most_so_many_and_keeps_its_shares_of_the_splits() -> None:
    labels = ["a"] * 36 + ["b"] * 18 + ["c"] * 6
    images = replace(tiny_images(60), labels=strings(labels), split=strings(_split()))
    some = subsample(images, 12)
    pairs = zip(some.labels.tolist(), some.split.tolist(), strict=True)
    assert Counter(pairs) == {
        ("a", "train"): 10, ("a", "test"): 2, ("b", "train"): 10, ("b", "test"): 2,
        ("c", "train"): 5, ("c", "test"): 1,
    }  # fmt: skip
    assert some.name == "tiny-12"


def test_rows_stay_what_they_were() -> None:
    images = tiny_images(40)
    some = subsample(images, 5)
    assert some.ids.tolist() == sorted(some.ids.tolist())
    for row, id_ in enumerate(some.ids.tolist()):
        before = images.ids.tolist().index(id_)
        assert some.sha256[row] == images.sha256[before]
        assert some.labels[row] == images.labels[before]
        assert np.array_equal(some.read(row), images.read(before))


def test_the_seed_draws_and_zero_is_a_seed() -> None:
    images = tiny_images(40)
    first, again, other = subsample(images, 5, 0), subsample(images, 5, 0), subsample(images, 5, 1)
    assert first.ids.tolist() == again.ids.tolist() != other.ids.tolist()


@given(
    counts=st.tuples(*[st.integers(0, 30)] * 3).filter(lambda counts: sum(counts) > 0),
    most=st.integers(2, 40),
)
def test_no_split_is_lost_and_no_class_has_too_many(
    counts: tuple[int, int, int], most: int
) -> None:
    split = [
        name for name, n in zip(("train", "val", "test"), counts, strict=True) for _ in range(n)
    ]
    images = replace(tiny_images(len(split), classes=1), split=strings(split))
    some = subsample(images, most)
    kept = Counter(some.split.tolist())
    assert len(some) == max(min(most, len(split)), min(len(set(split)), most)) or most < len(kept)
    if most >= 3:
        assert set(kept) == set(split)
        assert len(some) == min(most, len(split))


@pytest.mark.parametrize("most", [40, 1000])
def test_more_than_there_are_is_all(most: int) -> None:
    assert len(subsample(tiny_images(40), most)) == 40


def test_a_list_that_changes_by_itself_is_refused(tmp_path):
    path = tmp_path / "images.csv"
    write_images_csv(path, small(split=["train", "", "test"]))
    before, origin = path.read_bytes(), (tmp_path / "origin.json").read_bytes()
    path.write_bytes(before.replace(b"train", b"test"))
    with pytest.raises(DataError, match=r"images\.csv .* it is damaged, or was edited"):
        read_images_csv(path, "small")
    write_images_csv(path, small(split=["val", "", "test"]))
    assert read_images_csv(path, "small").split.tolist() == ["val", "", "test"]
    path.write_bytes(before)  # as a kill between the two files leaves it
    assert read_images_csv(path, "small").split.tolist() == ["train", "", "test"]
    (tmp_path / "origin.json").write_bytes(origin.replace(b'"lists"', b'"other"'))
    assert read_images_csv(path, "small").split.tolist() == ["train", "", "test"]  # an older one


def test_a_list_of_an_older_version_stays_good_until_it_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "images.csv"
    write_images_csv(path, small())
    (tmp_path / "origin.json").write_text('{"source": "", "root": ""}')
    plain = manifest.replacing

    @contextmanager
    def killed(at):
        with plain(at) as name:
            yield name
            if at == path:
                raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "replacing", killed)
    with pytest.raises(KeyboardInterrupt):
        write_images_csv(path, small(split=["val", "", "test"]))
    assert "lists" in (tmp_path / "origin.json").read_text()
    assert read_images_csv(path, "small").split.tolist() == ["", "", ""]
