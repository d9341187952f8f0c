"""A data set that grows: it can be fitted while its new images are being embedded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import tiny_backbone, tiny_images

from featcache.cli.main import cli
from featcache.extraction.extract import fill_cache
from featcache.images.manifest import IMAGES_CSV
from featcache.reporting.schema import read_run
from featcache.store.cache import Cache

EXTRACT = {"batch_size": 8, "workers": 1, "precision": "fp32"}


def stopping(after: int) -> Callable[[object], None]:
    """Something that is interrupted when it has been called more often than that."""
    calls: list[object] = []

    def called(what: object) -> None:
        calls.append(what)
        if len(calls) > after:
            raise KeyboardInterrupt

    return called


def fit(folder: Path) -> Result:
    return CliRunner().invoke(
        cli,
        ["fit", "--data", "tiny", "--head", "nearest_mean", "--folds", "2",
         "--cache", str(folder / "cache"), "--reports", str(folder / "reports")],
    )  # fmt: skip


def rows_fitted(folder: Path) -> list[int]:
    return sorted(read_run(path.parent).tested for path in folder.glob("reports/tiny/*/run.json"))


def test_fit_beside_an_extraction_that_grows_the_set(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fill_cache(tiny_images(24), backbone=tiny_backbone(), cache=cache, **EXTRACT)
    with pytest.raises(KeyboardInterrupt):  # the first pass is of images that are there
        fill_cache(
            tiny_images(48), backbone=tiny_backbone(called=stopping(2)), cache=cache, **EXTRACT
        )
    assert len(Cache(cache).images("tiny")) == 48
    found = fit(tmp_path)
    assert found.exit_code == 0, found.output
    assert "24 of 48 images of tiny have no vector yet" in found.output
    assert "featcache extract --data memory --backbone tiny" in found.output
    assert rows_fitted(tmp_path) == [24]
    fill_cache(tiny_images(48), backbone=tiny_backbone(), cache=cache, **EXTRACT)
    found = fit(tmp_path)
    assert found.exit_code == 0, found.output
    assert "no vector" not in found.output
    assert rows_fitted(tmp_path) == [24, 48]


def test_a_list_is_not_replaced_before_its_extraction_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fill_cache(tiny_images(24), backbone=tiny_backbone(), cache=cache, **EXTRACT)
    before = (cache / "tiny" / IMAGES_CSV).read_bytes()
    monkeypatch.setattr("featcache.extraction.task.begin", lambda *_: stopping(0)(_))
    with pytest.raises(KeyboardInterrupt):
        fill_cache(tiny_images(48), backbone=tiny_backbone(), cache=cache, **EXTRACT)
    assert (cache / "tiny" / IMAGES_CSV).read_bytes() == before
    assert fit(tmp_path).exit_code == 0
