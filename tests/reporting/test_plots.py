"""Plots are drawn, of the runs that compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featcache.reporting.comparison import sort_runs
from featcache.reporting.plots.comparison import plot_comparison

from .conftest import make_features, make_run, own_split

pytestmark = pytest.mark.rendered


def drawn(path) -> str:
    return path.with_suffix(".svg").read_text(encoding="utf-8")


def test_every_run_on_the_latest_rows_is_drawn(tmp_path):
    features, right = make_features(), np.arange(80) < 78
    made = [
        make_run(tmp_path, features, own_split(80, 40), right, head)
        for head in ("mlp", "svm", "logreg")
    ]
    path = plot_comparison(sort_runs(made).runs, tmp_path / "toy")
    assert path == tmp_path / "toy" / "comparison.png"
    with Image.open(path) as image:
        assert image.width > 800
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 5
    for head in ("mlp", "svm", "logreg"):
        assert f"big + small · concat · {head}" in drawn(path)
    older = replace(made[0], rows="others", created="2020-01-01T00:00:00+00:00")
    path = plot_comparison([older, *made[1:]], tmp_path / "toy")
    assert "· concat · mlp" not in drawn(path)
    assert "40 test images" in drawn(path)


def test_more_heads_than_colours(tmp_path):
    features, right = make_features(), np.arange(80) < 78
    one = make_run(tmp_path, features, own_split(80, 40), right, "mlp")
    many = [replace(one, head=f"head{i}") for i in range(12)]
    assert "head11" in drawn(plot_comparison(many, tmp_path / "toy"))
