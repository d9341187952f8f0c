"""Sample pictures and the data card."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from noise import noise
from PIL import Image

from featcache.images.manifest import from_arrays
from featcache.reporting.plots.samples import right_samples, wrong_samples
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
    for sample in wrong_samples(contents, pixels.__getitem__):
        kind, _, text = sample.uri.partition(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (kind, sample.small) == ("data:image/jpeg", False)
        assert max(image.size) == 112
        assert abs(int(np.asarray(image).mean()) - int(pixels[sample.id].mean())) <= 2


def test_small_images_stay_as_they_are(contents):
    tiny = np.asarray(noise(3))[:8, :8]
    sample = wrong_samples(contents, lambda _: tiny, 1)[0]
    image = Image.open(io.BytesIO(base64.b64decode(sample.uri.partition(",")[2])))
    assert sample.small
    assert (np.asarray(image.convert("RGB")) == tiny).all()


def test_an_image_that_is_gone_or_broken_is_listed_all_the_same(contents):
    def reader(id_):
        if id_ == contents.ids[~contents.right][0]:
            raise FileNotFoundError(id_)
        return b"no image"

    samples = wrong_samples(contents, reader)
    assert len(samples) > 3
    assert {s.uri for s in samples} == {""}


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
