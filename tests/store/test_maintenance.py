"""Looking after the cache: status, verify, repair, prune, export."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny import tiny_backbone, tiny_images

from featcache.errors import CacheDenied, FeatcacheError, UnknownName
from featcache.extraction.extract import fill_cache
from featcache.images.manifest import Images
from featcache.store.cache import Cache
from featcache.store.locking import lock_for
from featcache.store.maintenance import (
    _purpose,
    choose_victims,
    delete,
    export,
    repair,
    status,
    verify,
)


@pytest.fixture
def images() -> Images:
    return tiny_images(12)


@pytest.fixture
def cache(tmp_path: Path, images: Images) -> Cache:
    fill_cache(images, backbone=tiny_backbone(), cache=tmp_path / "cache", batch_size=4)
    return Cache(tmp_path / "cache")


def _flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def _offset(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_offset())


class TestStatus:
    def test_hit(self, cache: Cache, images: Images) -> None:
        found = status(cache, images, tiny_backbone().key())
        assert (found.state, str(found.coverage)) == ("HIT", "12 images")

    def test_partial_counts_what_is_there(self, cache: Cache) -> None:
        found = status(cache, tiny_images(20), tiny_backbone().key())
        assert found.state == "PARTIAL"
        assert str(found.coverage) == "20 images: 12 embedded, 8 missing"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"precision": "bf16"}, "precision fp32 → bf16"),
            ({"layer": "layer4:mean"}, "layer penultimate → layer4:mean"),
            ({"weights_sha256": "f" * 64}, "weights_sha256 seed 0 → " + "f" * 64),
        ],
    )
    def test_miss_names_the_field(
        self, cache: Cache, images: Images, change: dict[str, str], said: str
    ) -> None:
        found = status(cache, images, replace(tiny_backbone().key(), **change))
        assert found.state == "MISS"
        assert found.differences == (said,)
        assert said in str(found)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"crop": 4}, "preprocess.crop 8 → 4"),
            ({"interpolation": "bicubic"}, "preprocess.interpolation bilinear → bicubic"),
            ({"view": "hflip"}, "preprocess.view none → hflip"),
        ],
    )
    def test_miss_names_the_field_of_the_preprocessing(
        self, cache: Cache, images: Images, change: dict[str, object], said: str
    ) -> None:
        base = tiny_backbone()
        other = replace(base, preprocess=replace(base.preprocess, **change))
        assert status(cache, images, other.key()).differences == (said,)

    def test_never_extracted(self, cache: Cache, images: Images) -> None:
        found = status(cache, images, tiny_backbone("other").key())
        assert (found.state, found.nearest) == ("MISS", None)

    @pytest.mark.parametrize("change", ["batch_size", "workers"])
    def test_what_is_no_part_of_the_key_hits(
        self, cache: Cache, images: Images, change: str
    ) -> None:
        calls: list[int] = []
        report = fill_cache(
            images, backbone=tiny_backbone(called=calls.append), cache=cache.folder, **{change: 3}
        )
        assert report.outcomes[0].computed == 0
        assert calls == []


class TestVerify:
    def test_all_is_well(self, cache: Cache) -> None:
        (finding,) = verify(cache, "tiny")
        assert (finding.problem, finding.rows) == ("", 12)

    @pytest.mark.parametrize("row", [0, 5, 11])
    @pytest.mark.parametrize("bit", [0, 7])
    def test_one_flipped_bit_is_found_and_located(
        self, cache: Cache, images: Images, row: int, bit: int
    ) -> None:
        path = cache.entries("tiny")[0].path
        _flip(path, _offset(path, "features") + row * 5 * 4 + 6, bit)
        (finding,) = verify(cache, "tiny")
        assert finding.damaged == (images.ids[row],)
        assert f"rows {row}" in finding.problem

    def test_repair_redoes_the_damaged_row_only(self, cache: Cache, images: Images) -> None:
        path = cache.entries("tiny")[0].path
        whole = cache.features(images, cache.choose("tiny")).X
        _flip(path, _offset(path, "features") + 3 * 5 * 4)
        repair(verify(cache, "tiny")[0])
        assert not path.exists()
        report = fill_cache(images, backbone=tiny_backbone(), cache=cache.folder, batch_size=4)
        assert report.outcomes[0].computed == 1
        np.testing.assert_array_equal(cache.features(images, cache.choose("tiny")).X, whole)
        assert verify(cache, "tiny")[0].problem == ""

    def test_a_damaged_digest_is_found(self, cache: Cache) -> None:
        path = cache.entries("tiny")[0].path
        _flip(path, _offset(path, "sha256") + 2 * 32)
        assert "1 of 12 rows" in verify(cache, "tiny")[0].problem

    @pytest.mark.parametrize("content", [b"", b"not hdf5 at all", b"\x89HDF\r\n\x1a\n" + b"0" * 99])
    def test_what_is_no_feature_file_is_named(self, cache: Cache, content: bytes) -> None:
        foreign = cache.folder / "tiny" / "foreign.h5"
        foreign.write_bytes(content)
        findings = {f.path.name: f for f in verify(cache, "tiny")}
        assert findings["foreign.h5"].problem
        repair(findings["foreign.h5"])
        assert [f.problem for f in verify(cache, "tiny")] == [""]

    def test_a_file_that_may_not_be_read_is_not_called_damaged(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = cache.entries("tiny")[0].path

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        with monkeypatch.context() as patch:  # as root, chmod would refuse nothing
            patch.setattr(h5py, "File", refuse)
            (finding,) = verify(cache, "tiny")
            with pytest.raises(CacheDenied, match="no permission") as caught:
                cache.missing("tiny", tiny_backbone().key(), np.zeros((1, 32), np.uint8))
        assert "chmod u+r " in caught.value.remedy
        assert str(finding) == f"DENIED   {path}: no permission to read it"
        assert "left as it is" in repair(finding)
        assert path.is_file()
        assert verify(cache, "tiny")[0].problem == ""

    def test_without_its_list_of_images_a_file_is_verified_still(self, cache: Cache) -> None:
        path = cache.entries("tiny")[0].path
        (cache.folder / "tiny" / "images.csv").unlink()
        assert verify(cache, "tiny")[0].problem == ""
        _flip(path, _offset(path, "features"))
        (finding,) = verify(cache, "tiny")
        assert len(finding.damaged[0]) == 64  # the content's digest stands for the id

    def test_a_truncated_file_is_named(self, cache: Cache) -> None:
        path = cache.entries("tiny")[0].path
        path.write_bytes(path.read_bytes()[:-200])
        assert "cut short" in verify(cache, "tiny")[0].problem
        assert cache.entries("tiny") == []

    def test_a_file_under_the_name_of_another_key_is_named(self, cache: Cache) -> None:
        path = cache.entries("tiny")[0].path
        path.rename(path.with_name("tiny.fixed.00000000.h5"))
        assert "does not fit its key" in verify(cache, "tiny")[0].problem


class TestPrune:
    def test_without_a_rule_only_leftovers_go(self, cache: Cache) -> None:
        left = cache.folder / "tiny" / ".x.h5.partial"
        left.write_bytes(b"123")
        victims = choose_victims(cache, ["tiny"])
        assert [(v.path, v.bytes) for v in victims] == [(left, 3)]
        delete(victims)
        assert not left.exists()
        assert len(cache.entries("tiny")) == 1

    def test_superseded_keeps_the_newest_of_each_backbone(
        self, cache: Cache, images: Images
    ) -> None:
        old = cache.entries("tiny")[0]
        os.utime(old.path, (1, 1))
        for newer in (tiny_backbone(seed=1), tiny_backbone("other"), tiny_backbone(view="hflip")):
            fill_cache(images, backbone=newer, cache=cache.folder, batch_size=4)
        victims = choose_victims(cache, ["tiny"], superseded=True)
        assert [v.path for v in victims] == [old.path]

    @pytest.mark.parametrize(
        ("change", "replaced"),
        [
            ({"weights_sha256": "f" * 64}, True),
            ({"weights": "V2", "weights_sha256": "f" * 64}, False),
            ({"weights_sha256": "random:1"}, False),
            ({"layer": "layer4:mean"}, False),
            ({"precision": "bf16"}, False),
            ({"dtype": "float16"}, False),
            ({"library": "timm"}, False),
        ],
    )
    def test_superseded_means_another_weight_file_and_nothing_else(
        self, cache: Cache, change: dict[str, str], replaced: bool
    ) -> None:
        (old,) = cache.entries("tiny")
        newer = replace(old, path=old.path.with_name("new.h5"), key=replace(old.key, **change))
        assert (_purpose(newer) == _purpose(old)) is replaced

    @pytest.mark.parametrize("name", ["crop", "view", "resize"])
    def test_another_preprocessing_supersedes_nothing(self, cache: Cache, name: str) -> None:
        (old,) = cache.entries("tiny")
        plain = {**old.key.preprocess, name: "else"}
        assert _purpose(replace(old, key=replace(old.key, preprocess=plain))) != _purpose(old)

    def test_by_age(self, cache: Cache) -> None:
        path = cache.entries("tiny")[0].path
        assert choose_victims(cache, ["tiny"], older_than=1) == []
        day = 86_400
        os.utime(path, (time.time() - 3 * day,) * 2)
        assert [v.path for v in choose_victims(cache, ["tiny"], older_than=2)] == [path]

    def test_by_size_the_oldest_go_first(self, cache: Cache, images: Images) -> None:
        old = cache.entries("tiny")[0]
        os.utime(old.path, (1, 1))
        fill_cache(images, backbone=tiny_backbone("other"), cache=cache.folder, batch_size=4)
        total = sum(entry.bytes for entry in cache.entries("tiny"))
        assert choose_victims(cache, ["tiny"], max_bytes=total) == []
        assert [v.path for v in choose_victims(cache, ["tiny"], max_bytes=total - 1)] == [old.path]
        assert len(choose_victims(cache, ["tiny"], max_bytes=0)) == 2

    def test_a_file_that_is_being_written_stays(self, cache: Cache) -> None:
        path = cache.entries("tiny")[0].path
        victims = choose_victims(cache, ["tiny"], max_bytes=0)
        with lock_for(path):
            assert delete(victims) == []
        assert path.exists()


class TestExport:
    def test_npz(self, cache: Cache, images: Images, tmp_path: Path) -> None:
        features = cache.features(images, cache.choose("tiny"))
        with np.load(export(features, tmp_path / "out.npz"), allow_pickle=False) as found:
            np.testing.assert_array_equal(found["X"], features.X)
            np.testing.assert_array_equal(found["y"], features.y)
            assert found["blocks"].tolist() == [5]

    def test_csv_reads_back_to_the_bit(self, cache: Cache, images: Images, tmp_path: Path) -> None:
        features = cache.features(images, cache.choose("tiny"))
        text = export(features, tmp_path / "out.csv").read_text()
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["id"] for row in rows] == features.ids.tolist()
        assert [row["label"] for row in rows] == features.y.tolist()
        back = np.array([[row[f"tiny_{i}"] for i in range(5)] for row in rows], np.float32)
        np.testing.assert_array_equal(back, features.X)

    def test_parquet(self, cache: Cache, images: Images, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
        import pandas as pd

        features = cache.features(images, cache.choose("tiny"))
        frame = pd.read_parquet(export(features, tmp_path / "out.parquet"))
        np.testing.assert_array_equal(frame.filter(like="tiny_").to_numpy(), features.X)
        assert frame["label"].tolist() == features.y.tolist()

    def test_without_pyarrow_it_names_the_package(
        self, cache: Cache, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(FeatcacheError, match="pyarrow"):
            export(cache.features(images, cache.choose("tiny")), tmp_path / "out.parquet")

    def test_unknown_format(self, cache: Cache, images: Images, tmp_path: Path) -> None:
        with pytest.raises(UnknownName, match=r"\.mat"):
            export(cache.features(images, cache.choose("tiny")), tmp_path / "out.mat")
