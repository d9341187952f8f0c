"""Sample pictures and the data card."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from noise import noise
from PIL import Image

from featcache.images.manifest import from_arrays
from featcache.reporting.plots.features import Map
from featcache.reporting.plots.samples import (
    MAP_SIZE,
    map_points,
    right_samples,
    thumbnail,
    wrong_samples,
)
from featcache.reporting.run_page import data_card
from featcache.reporting.run_reader import read_contents

from .pages import make_odd_run, toy_images


@pytest.fixture
def contents(tmp_path):
    return read_contents(make_odd_run(tmp_path, folds=3)[0].folder)


def test_mistakes_by_falling_confidence_and_every_class_once_when_right(contents):
    wrong = wrong_samples(contents, None)
    assert [s.confidence for s in wrong] == sorted((s.confidence for s in wrong), reverse=True)
    assert all(s.true != s.pred and s.uri == "" for s in wrong)
    right = right_samples(contents, None, 3)
    assert sorted(s.true for s in right) == contents.classes
    assert all(s.true == s.pred for s in right)
    assert right == right_samples(contents, None, 3)


def test_pictures_are_of_the_images_they_stand_under(contents):
    pixels = {id_: np.full((200, 300, 3), i, np.uint8) for i, id_ in enumerate(contents.ids)}
    for sample in wrong_samples(contents, partial(thumbnail, pixels.__getitem__)):
        kind, _, text = sample.uri.partition(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (kind, sample.small) == ("data:image/jpeg", False)
        assert max(image.size) == 112
        assert abs(int(np.asarray(image).mean()) - int(pixels[sample.id].mean())) <= 2


def test_small_images_stay_as_they_are(contents):
    tiny = np.asarray(noise(3))[:8, :8]
    sample = wrong_samples(contents, partial(thumbnail, lambda _: tiny), 1)[0]
    image = Image.open(io.BytesIO(base64.b64decode(sample.uri.partition(",")[2])))
    assert sample.small
    assert (np.asarray(image.convert("RGB")) == tiny).all()


def test_an_image_that_is_gone_or_broken_is_listed_all_the_same(contents):
    def reader(id_):
        if id_ == contents.ids[~contents.right][0]:
            raise FileNotFoundError(id_)
        return b"no image"

    samples = wrong_samples(contents, partial(thumbnail, reader))
    assert len(samples) > 3
    assert {s.uri for s in samples} == {""}


def draw(id_):
    return f"data:image/png;base64,{id_}", False


def test_points_know_what_was_predicted_and_mistakes_lie_on_top(contents):
    rng = np.random.default_rng(0)
    ids = np.array([*contents.ids.tolist(), "only/trained.png", "x" * 500])
    labels = np.array([*contents.true.tolist(), "cat", "cat"])
    found = Map(ids, labels, rng.normal(size=(len(ids), 2)) * 1e6)
    points = map_points(found, contents, draw, 5)
    assert len(points) == len(ids)
    row = {id_: place for place, id_ in enumerate(contents.ids.tolist())}
    for one in points:
        if one.sample.id in row:
            place = row[one.sample.id]
            assert one.sample.true == contents.true[place]
            assert one.sample.pred == contents.pred[place]
            assert one.sample.confidence == contents.confidence[place]
            assert one.wrong == (not contents.right[place])
    assert sorted(one.sample.pred for one in points)[:2] == ["", ""]
    assert max(len(one.sample.id) for one in points) < 130
    wrong = [one.wrong for one in points]
    assert wrong == sorted(wrong)
    assert [bool(one.sample.uri) for one in points] == [False] * (len(ids) - 5) + [True] * 5
    assert all(0 < one.x < MAP_SIZE[0] and 0 < one.y < MAP_SIZE[1] for one in points)
    # Distances keep their proportions, and y grows downwards.
    xy = dict(zip(ids.tolist(), found.xy, strict=True))
    for a, b in itertools.pairwise(one for one in points if one.sample.id in row):
        was = (xy[b.sample.id] - xy[a.sample.id]) * (1, -1)
        now = np.array([b.x - a.x, b.y - a.y])
        assert was[0] * now[1] - was[1] * now[0] == pytest.approx(0, abs=1e-3)
        assert was @ now > 0


def test_an_image_that_is_wrong_once_is_wrong_on_the_map(contents):
    row = int(np.flatnonzero(~contents.right)[0])
    id_, true = str(contents.ids[row]), str(contents.true[row])
    twice = replace(
        contents, ids=np.array([id_, id_]), true=np.array([true, true]),
        pred=np.array([true, str(contents.pred[row])]), fold=contents.fold[:2], proba=None,
    )  # fmt: skip
    found = Map(np.array([id_]), np.array(["cat"]), np.zeros((1, 2)))
    (point,) = map_points(found, twice, None, 0)
    assert point.wrong
    assert (point.x, point.y) == (MAP_SIZE[0] / 2, MAP_SIZE[1] / 2)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 1e308])
def test_damaged_coordinates_are_left_out(contents, odd):
    xy = np.array([[0.0, 1.0], [odd, 0.0], [-odd, 2.0]])
    points = map_points(Map(contents.ids[:3], contents.true[:3], xy), contents, None, 0)
    assert all(np.isfinite([one.x, one.y]).all() for one in points)
    assert len(points) == (3 if odd == 1e308 else 1)
    assert map_points(None, contents, None, 0) == []


def test_pictures_on_a_map_stop_before_they_are_too_many_bytes(contents):
    heavy = "data:image/png;base64," + "A" * 300_000
    found = Map(contents.ids, contents.true, np.random.default_rng(0).normal(size=(90, 2)))
    points = map_points(found, contents, lambda _: (heavy, False), 90)
    assert sum(len(one.sample.uri) for one in points) < 3_000_000
    assert sum(bool(one.sample.uri) for one in points) == 9


def test_the_card_counts(tmp_path, contents):
    images = from_arrays(
        "toy", [np.full((2, 2), i % 5, np.uint8) for i in range(8)],
        ids=[str(i) for i in range(8)], labels=list("aabbaabb"),
        split=["train"] * 5 + ["test"] * 3, groups=["p", "p", "q", "", "", "", "", ""],
    )  # fmt: skip
    (tmp_path / "failed.csv").write_text("id,sha256,kind,problem\nx.png,00,decode,cut short\n")
    card = data_card(contents, images, tmp_path)
    assert card.splits == ["train", "test"]
    assert card.counts == {"a": [3, 1], "b": [2, 2]}
    assert (card.total, card.groups, card.duplicates) == (8, 2, 3)
    assert card.conflicts == 1  # 0 is "a" and "a", 1 "a" and "b", 2 "b" and "b"
    assert card.failed == [("x.png", "cut short")]


def test_without_the_manifest_only_what_was_tested_is_counted(contents):
    card = data_card(contents, None, None)
    assert (card.whole, card.splits, card.total) == (False, ["tested"], 90)


def test_toy_images_read_by_id(tmp_path):
    _, features = make_odd_run(tmp_path)
    images = toy_images(features)
    assert images.can_read
    assert not replace(images, read=type(images).__dataclass_fields__["read"].default).can_read
