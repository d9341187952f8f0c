"""`featcache report` of several data sets, and of one run among many."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_backbone

from featcache.cli.main import run
from featcache.extraction.extract import fill_cache
from featcache.images.sources import open_images


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data sets whose images have the same names, each with two runs and the page of one."""
    monkeypatch.chdir(tmp_path)
    for module in ("run_page", "comparison_page"):
        monkeypatch.setattr(f"featcache.reporting.{module}.draw", lambda *_: False)
    monkeypatch.setattr("featcache.reporting.plots.comparison.plot_comparison", lambda *_: None)
    for number, name in enumerate(("cells", "photos")):
        rng = np.random.default_rng(number)
        for i in range(24):
            pixels = rng.integers(0, 150, (8, 8, 3)) + 50 * (i % 2)
            path = tmp_path / name / "ab"[i % 2] / f"{i + 100 * number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        fill_cache(open_images(name, cache="cache"), backbone=tiny_backbone())
        assert run(["compare", "--data", name, "--head", "logreg,dummy", "--folds", "2"]) == 0
    return tmp_path


def pages() -> dict[str, str]:
    """The best page of each data set."""
    found = {path.parts[1]: path.read_text() for path in Path("reports").glob("*/*/report.html")}
    assert set(found) == {"cells", "photos"}
    return {name: re.sub("(?s)<nav.*?</nav>", "", text) for name, text in found.items()}


def pictures(page: str) -> int:
    return len(re.findall(r'<img src="data:image', page))


def test_images_that_were_moved_are_shown_on_their_own_pages_only(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pages()
    assert all(pictures(page) for page in before.values())
    (here / "moved").mkdir()
    (here / "photos").rename(here / "moved" / "photos")
    assert run(["report", "--data", "moved/photos"]) == 0
    assert pages() == before
    # Under another name they are known by their ids.
    (here / "moved" / "photos").rename(here / "moved" / "pictures")
    assert run(["report", "--data", "moved/pictures"]) == 0
    assert pages() == before
    # The runs of both data sets, and the images of one.
    runs = [str(path.parent.relative_to(here)) for path in here.glob("reports/*/*/report.html")]
    assert run(["report", "--data", "moved/pictures", *runs]) == 0
    assert pages() == before
    (here / "none" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(here / "none" / "a" / "x.png")
    capsys.readouterr()
    assert run(["report", "--data", "none"]) == 1
    assert "no run on cells, photos was tested on the images of none" in capsys.readouterr().err
    assert pages() == before


def test_one_run_is_placed_among_all_on_its_rows(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dummy, logreg = (
        str(next(here.glob(f"reports/photos/*.{head}.*"))) for head in ("dummy", "logreg")
    )
    capsys.readouterr()
    assert run(["report", dummy]) == 0
    out = capsys.readouterr().out
    assert "only run" not in out
    assert "Number 2 of 2 runs on the same rows; the best is tiny.concat.logreg with" in out
    assert "photos, 2 folds, 24 test images, positive class b; 1 of 2 runs" in out
    assert run(["report", dummy, logreg]) == 0
    assert " of 2 runs" not in capsys.readouterr().out
    (Path(logreg) / "run.json").unlink()
    assert run(["report", dummy]) == 0
    assert "tiny.concat.dummy is the only run on these rows." in capsys.readouterr().out
